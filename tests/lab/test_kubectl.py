"""`kubectl lbctl` on a lab's two nodes, under traffic: one stream of both, and no event twice or
lost; what each of them says is what its own agent does."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from lbctl.bench import generator
from lbctl.inspect.opened import open_instance
from lbctl.lab import namespace
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from tests.lab.support.faults import answers, service
from tests.lab.support.lab_kubectl import LabKubectl
from tests.lab.support.labs import PORT, TARGET, TCP, UDP, Responder, addresses, endpoint
from tests.lab.support.moments import pause, since
from tests.lab.support.terminals import terminal
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

PER_SECOND = 1000  # connections on each node, for each second of --soak
WARM_UP = 20  # that connect.c makes besides
BOUND = 30.0
MANY = Port(PORT, TARGET + 1, "tcp")
VERDICTS = ("opened", "ended")
# By node: who calls, which service, and the pod that answers.
CALLS = {"node1": ("pod1", "near", "pod3"), "node2": ("pod2", "far", "pod4")}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("kc", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, ["pod3"])
        made.apply("web", service(made, "web", ["pod3"]))
        for _, called, server in CALLS.values():
            made.apply(called, service(made, called, [server], [MANY]))
        made.wait_programmed("default/web", [endpoint(made, "pod3")])
        for _, called, server in CALLS.values():
            made.wait_programmed(f"default/{called}", [endpoint(made, server)])
        yield made
    made.down()


@pytest.fixture
def kubectl(lab: Lab, tmp_path: Path) -> LabKubectl:
    return LabKubectl(lab, tmp_path)


def run(kubectl: LabKubectl, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*kubectl.command, *words],
        capture_output=True, text=True, timeout=120, check=False, env=kubectl.environment,
    )  # fmt: skip


class Following:
    """`kubectl lbctl observe`, and what it has said so far."""

    def __init__(self, kubectl: LabKubectl, output: Path, *words: str) -> None:
        self._output = output
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                [*kubectl.command, "observe", "-o", "json", *words],
                stdout=stream, stderr=subprocess.PIPE, text=True, env=kubectl.environment,
            )  # fmt: skip

    def events(self) -> list[dict[str, Any]]:
        lines = self._output.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def end(self) -> list[str]:
        """As Ctrl-C does; returns what was said beside the events."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        return errors.splitlines()


@contextlib.contextmanager
def following(lab: Lab, kubectl: LabKubectl, output: Path, *words: str) -> Iterator[Following]:
    # By who came before.
    wait_until(lambda: not any(listeners(lab, node.name) for node in lab.nodes), BOUND)
    made = Following(kubectl, output, *words)
    try:
        wait_until(lambda: all(listeners(lab, node.name) for node in lab.nodes), BOUND)
        yield made
    finally:
        made.process.kill()
        made.process.communicate(timeout=10)


def listeners(lab: Lab, node: str) -> bool:
    with open_instance(lab.pin_dir(node)) as instance:
        return bool(instance.config.records["events_until"][0])


def told(seen: Following, moment: datetime) -> Counter[str]:
    """Events of each node after this moment, told or said to be lost."""
    events = seen.events()
    lost = {event["node"]: event["lost"] for event in events if "lost" in event}
    return Counter(event["node"] for event in since(moment, events)) + Counter(lost)


def call(lab: Lab, program: Path, node: str, times: int) -> subprocess.Popen[str]:
    caller, called, server = CALLS[node]
    pods = [str(namespace.path_of(lab.find(name).namespace)) for name in (caller, server)]
    process = subprocess.Popen(
        [str(program), "cycle", *pods, "-1", str(MANY.target), str(times)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(f"{addresses(called)[0]} {PORT}\n")
    process.stdin.close()
    process.stdin = None
    return process


@pytest.mark.alone
def test_one_stream_of_all_nodes(
    lab: Lab, kubectl: LabKubectl, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Each connection on each node is told once, with its node, by time; what could
    not be told is counted."""
    program = generator.compiled(tmp_path)
    if program is None:
        pytest.skip("no C compiler here")
    times = int(PER_SECOND * pytestconfig.getoption("--soak"))
    words = [word for _, called, _ in CALLS.values() for word in ("--service", f"default/{called}")]
    with following(lab, kubectl, tmp_path / "events", *words) as seen:
        for node in CALLS:  # one that is told: from now on all are
            call(lab, program, node, 1).communicate(timeout=60)
        wait_until(lambda: {*CALLS} <= {event["node"] for event in seen.events()}, BOUND)
        moment = pause()
        callers = {node: call(lab, program, node, times) for node in CALLS}
        for caller in callers.values():
            out, _ = caller.communicate(timeout=200)
            assert "-1" not in out.split(), "every connection worked"
        made = len(VERDICTS) * (times + WARM_UP)
        wait_until(lambda: all(told(seen, moment)[n] >= made for n in CALLS), BOUND)
        errors = seen.end()
        assert seen.process.returncode == 0, errors
    assert told(seen, moment) == dict.fromkeys(CALLS, made)
    events = [event for event in seen.events() if "verdict" in event]
    assert all(e["service"]["service"] == CALLS[e["node"]][1] for e in events)
    # A machine that is busy tells some later than they are waited for; in order is what comes in
    # time (unit/test_kubectl_interleaving.py).
    moments = [event["time"] for event in events]
    late = sum(a > b for a, b in itertools.pairwise(moments))
    assert late <= len(moments) / 100
    lost = sum(told(seen, moment).values()) - len(since(moment, events))
    assert errors[-1] == f"{len(events)} events were shown, {lost} lost"


def test_a_node_that_goes_takes_nobody_with_it(
    lab: Lab, kubectl: LabKubectl, tmp_path: Path
) -> None:
    with following(lab, kubectl, tmp_path / "events") as seen:
        kubectl.kill("node2", signal.SIGKILL)
        assert answers(lab, "pod1", addresses("web")[0], kinds=[TCP], times=1) == {"pod3"}
        wait_until(lambda: "ended" in {e["verdict"] for e in seen.events()}, BOUND)
        errors = seen.end()
    assert seen.process.returncode != 0
    assert any(line.startswith("node2: gone (exit code ") for line in errors)
    assert "at least 0 lost: not all is known of node2" in errors[-1]


def test_who_calls_without_being_an_endpoint(lab: Lab, kubectl: LabKubectl, tmp_path: Path) -> None:
    """By the pod's range and the way there; by name for who may list pods."""
    pod1 = lab.find("pod1")
    own = {"address": pod1.addresses[0], "node": "node1", "kind": "pod"}
    for words, name, interface in (
        ([], "", next(pod.interface for pod in lab.pods if pod.name == "pod1")),
        (["--resolve"], "default/pod1", None),
    ):
        with following(lab, kubectl, tmp_path / "events", "--service", "web", *words) as seen:
            assert answers(lab, "pod1", addresses("web")[0], kinds=[TCP], times=1) == {"pod3"}
            wait_until(lambda: bool(seen.events()), BOUND)
            seen.end()
        client = seen.events()[0]["client"]
        assert client.items() >= own.items()
        assert client["name"] == name
        assert interface is None or client["interface"] == interface


def test_names_where_they_are_asked_for(lab: Lab, kubectl: LabKubectl) -> None:
    """Of endpoints from the slices; of others for who may list pods."""
    pod1 = lab.find("pod1")
    # That of a datagram stays a while.
    assert answers(lab, "pod1", addresses("web")[0], kinds=[UDP], times=1) == {"pod3"}
    words = ("flow", "list", "--service", "web", "--client", pod1.addresses[0])
    done = run(kubectl, "--node", "node1", *words, "--names", "-o", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["node1"]
    assert {(row["client_name"], row["backend_name"]) for row in rows} == {("", "default/pod3")}
    table = run(kubectl, "--node", "node1", *words, "--resolve", "-n", "default").stdout
    assert "default/pod1:" in table
    assert pod1.addresses[0] not in table
    done = run(kubectl, "--node", "node1", "top", "--once", "--clients", "--names", "-o", "json")
    called = {row["name"] for row in json.loads(done.stdout)["node1"]["rows"]}
    interface = next(pod.interface for pod in lab.pods if pod.name == "pod1")
    assert f"{pod1.addresses[0]} (pod on node1 by {interface})" in called


def test_tables_and_documents_of_both(lab: Lab, kubectl: LabKubectl) -> None:
    done = run(kubectl, "top", "--once", "--interval", "0.1", "-o", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {*found} == {"node1", "node2"}
    assert all(top["kind"] == "services" for top in found.values())
    done = run(kubectl, "service", "list")
    head, *rows = done.stdout.splitlines()
    assert head.split()[:2] == ["NODE", "NAMESPACE"]
    assert {row.split()[0] for row in rows} == {"node1", "node2"}
    done = run(kubectl, "explain", "web", "--from", "default/pod2", "-o", "json")
    assert {node: said["origin"] for node, said in json.loads(done.stdout).items()} == {
        "node2": "pod"
    }
    done = run(kubectl, "explain", "web", "--from", "node2", "-o", "json")
    assert {node: said["origin"] for node, said in json.loads(done.stdout).items()} == {
        "node1": "outside",
        "node2": "node",
    }


def test_top_on_the_terminal_of_who_asks(lab: Lab, kubectl: LabKubectl) -> None:
    command = [*kubectl.command, "top", "--node", "node1", "--interval", "0.2"]
    with terminal(command, kubectl.environment) as shown:
        shown.wait_for(b"default/web:tcp/TCP/v4")
        shown.press(b"q")
        assert shown.wait_end() == 0
