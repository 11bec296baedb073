"""A lab with agents, from outside: they start, are found, die, come back, and leave no trace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.errors import LbError
from lbctl import status
from lbctl.demo.services import examples_directory
from lbctl.lab import cgroup, sessions, state, teardown
from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.state import AgentOptions
from tests.support.interruptible import interruptible

pytestmark = pytest.mark.lab


def traces(name: str, pin_dirs: list[Path]) -> list[str]:
    """Everything on this machine that bears the name of the lab `name`."""
    paths = state.Paths(name)
    directories = [paths.run, paths.pins, cgroup.root_of(name)]
    said = [status.path_of(pin_dir) for pin_dir in pin_dirs]
    found = [str(path) for path in (*directories, *said) if path.exists()]
    return found + teardown.namespaces_of(name)


@pytest.fixture(scope="module", params=["route", "bridge"])
def served(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """A lab with agents and a web service on pod1 and pod2, which both run servers."""
    lab = make_lab(request.param[0], cni=request.param, nodes=2, pods=2)
    sessions.start_http(lab, lab.pods)
    yield lab
    lab.down()


def ask(lab: Lab, member: str, service: str, requests: int = 60) -> list[set[str]]:
    """Who answers for `service`, per family."""
    answered = []
    for address in lab.service(service, [Port(80)], [])[0]["spec"]["clusterIPs"]:
        where = sessions.target(address, 80)
        options = ("--requests", str(requests), "--rate", "500", "--timeout", "3")
        report = sessions.run_client(lab, member, "http", where, *options)
        assert report.lost == 0, report
        answered.append(set(report.servers))
    return answered


def publish(lab: Lab, name: str, *pods: str) -> None:
    """Make a service lead to `pods`, and wait until it does on all nodes."""
    found = [pod for pod in lab.pods if pod.name in pods]
    lab.apply(name, lab.service(name, [Port(80, sessions.HTTP_PORT, "http")], found))
    lab.wait_programmed(f"default/{name}", found)


def test_a_service_is_reached_from_pods_of_both_nodes(served: Lab) -> None:
    publish(served, "both", "pod1", "pod2")
    for client in ("pod3", "pod4"):
        assert ask(served, client, "both") == [{"pod1", "pod2"}] * 2


def test_a_service_changes_and_goes(served: Lab) -> None:
    publish(served, "moving", "pod1")
    assert ask(served, "pod4", "moving", 10) == [{"pod1"}] * 2
    publish(served, "moving", "pod2")
    assert ask(served, "pod4", "moving", 10) == [{"pod2"}] * 2
    served.withdraw("moving")
    served.wait_gone("default/moving")


def test_a_killed_agent_is_noticed_and_another_one_goes_on(served: Lab) -> None:
    publish(served, "lasting", "pod1")
    before = served.agent("node2")
    served.stop_agent("node2", signal.SIGKILL)
    assert ask(served, "pod4", "lasting", 10) == [{"pod1"}] * 2
    with pytest.raises(LbError, match="the agent of node2 has ended"):
        served.wait_ready(["node2"])
    after = served.start_agent("node2")
    assert after != before
    served.wait_ready()
    with pytest.raises(LbError, match="has an agent already"):
        served.start_agent("node2")
    publish(served, "lasting", "pod2")
    assert ask(served, "pod4", "lasting", 10) == [{"pod2"}] * 2


def test_a_pod_that_joins_can_call_services(served: Lab) -> None:
    publish(served, "greeting", "pod1", "pod2")
    pod = served.add_pod("node2")
    served.wait_attached()
    assert ask(served, pod.name, "greeting") == [{"pod1", "pod2"}] * 2
    served.remove_pod(pod.name)


def test_other_modules_get_a_lab_that_is_ready(lab: Lab) -> None:
    assert len(lab.nodes) == 2
    assert len(lab.pods) == 6
    for node in lab.nodes:
        said = status.read(lab.pin_dir(node.name))
        assert said is not None
        assert said.ready
        assert said.interfaces == 4  # three pods and the uplink


def test_an_agent_that_cannot_start_fails_the_lab_with_its_own_words(lab_name: str) -> None:
    name = f"{lab_name[:30]}-bad"
    options = AgentOptions(extra=("--no-such-option",))
    with pytest.raises(LbError, match="has ended") as caught:
        Lab.up(name, nodes=1, pods=1, options=options)
    assert "--no-such-option" in caught.value.hint
    assert traces(name, []) == []


def test_the_command_line_starts_agents_on_manifests(lab_name: str) -> None:
    name = f"{lab_name[:30]}-cli"

    def lbctl(*arguments: str) -> str:
        return subprocess.run(
            lbctl_command(*arguments),
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            env=environment(),
            check=True,
        ).stdout

    lbctl("lab", "up", "--name", name, "--manifests", str(examples_directory()))
    try:
        shown = json.loads(lbctl("lab", "status", "--name", name, "-o", "json"))
        assert all(node["agent"]["running"] for node in shown["nodes"])
        pin_dirs = [Path(node["pin_dir"]) for node in shown["nodes"]]
        for pin_dir in pin_dirs:
            told = json.loads(lbctl("status", "--pin-dir", str(pin_dir), "-o", "json"))
            assert (told["ready"], told["services"], told["endpoints"]) == (True, 4, 13)
    finally:
        lbctl("lab", "down", "--name", name)
    assert traces(name, pin_dirs) == []


@pytest.fixture
def demo_name(lab_name: str) -> Iterator[str]:
    name = f"{lab_name[:30]}-demo"
    yield name
    teardown.remove(name)


@pytest.mark.parametrize("cni", ["route", "bridge"])
def test_the_demo_loses_nothing_and_cleans_up(demo_name: str, cni: str) -> None:
    done = subprocess.run(
        lbctl_command("demo", "--name", demo_name, "--cni", cni),
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "lost: 0"
    sent = re.fullmatch(r"requests: (\d+)", lines[-2])
    assert sent is not None
    assert int(sent[1]) > 2000
    pins = state.Paths(demo_name).pins
    assert traces(demo_name, [pins / "node1", pins / "node2"]) == []


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "Building"), (signal.SIGTERM, "Adding pod4")]
)
def test_an_interrupted_demo_cleans_up(demo_name: str, number: int, moment: str) -> None:
    with subprocess.Popen(
        lbctl_command("demo", "--name", demo_name),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=interruptible,
    ) as demo:
        assert demo.stderr is not None
        assert any(moment in line for line in demo.stderr)
        demo.send_signal(number)
        demo.communicate(timeout=60)
    assert demo.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(number)]
    pins = state.Paths(demo_name).pins
    assert traces(demo_name, [pins / "node1", pins / "node2"]) == []
