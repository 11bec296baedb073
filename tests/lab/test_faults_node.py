"""What happens to the agent, its programs and the node's interfaces, while everything is in use."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from ebpf.kernel import libbpf
from lbctl.lab import network, objects
from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Pod
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, targets
from tests.lab.support.faults import answers, answers_process, service, wait_said
from tests.lab.support.labs import PORT, TCP, Responder, addresses, endpoint, publish
from tests.lab.support.remote_sockets import process_in
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SERVERS = ("pod3", "pod4")
VICTIM = "pod5"  # on node1, has no part in the bystanders' traffic
KILLS = 6
BEAT = 15.0  # seconds within which sockets notice that no agent lives: "within seconds"
WAYS = {"pod1": ("cluster", "ingress"), "node1": ("cluster",), "outside": ("node1", "external")}


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with Responder() as made:
        yield made


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], responder: Responder) -> Iterator[Lab]:
    made = make_lab("fn", nodes=2, pods=3)
    responder.serve(made, [pod.name for pod in made.pods])
    STEADY.publish(made, SERVERS)
    publish(made, {"moving": ["pod2"]})
    yield made
    made.down()


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS, WAYS)) as made:
        yield made


@pytest.fixture(autouse=True)
def all_agents_run(lab: Lab, traffic: Bystanders) -> Iterator[None]:
    yield
    for node in lab.nodes:
        known = lab.agent(node.name)
        if known is None or not known.running:
            lab.start_agent(node.name)
    lab.wait_ready()
    traffic.unharmed()


def reaches(lab: Lab, member: str) -> bool:
    """Whether both families and protocols of a service answer a process there, in its cgroup."""
    with process_in(lab, member) as process:
        return all(
            answers_process(process, address, PORT, times=1) <= set(SERVERS)
            for address in addresses("steady")
        )


def test_agents_that_are_killed_while_objects_change(lab: Lab, traffic: Bystanders) -> None:
    """Each is killed at another moment of its start or of a change; the last change counts."""
    others = itertools.cycle(["pod2", "pod3", "pod6"])
    for turn in range(KILLS):
        for node in ("node1", "node2"):
            member = next(others)
            lab.apply("moving", service(lab, "moving", [member]))
            lab.apply(f"fleeting-{turn}", service(lab, f"fleeting-{turn}", [member]))
            time.sleep(0.15 * turn)
            lab.restart_agent(node)
        lab.withdraw(f"fleeting-{turn - 2}")
    lab.apply("moving", service(lab, "moving", ["pod6"]))
    lab.wait_programmed("default/moving", [endpoint(lab, "pod6")])
    for member in ("pod1", "pod2"):
        assert answers(lab, member, addresses("moving")[1]) == {"pod6"}
    for turn in range(KILLS - 2):
        lab.wait_gone(f"default/fleeting-{turn}")
    for turn in (KILLS - 2, KILLS - 1):
        lab.withdraw(f"fleeting-{turn}")
    traffic.unharmed()


@pytest.mark.parametrize("how", ["detached", "unpinned"])
def test_programs_that_somebody_removed_come_back(lab: Lab, how: str) -> None:
    """As a careless `bpftool link detach`, or rm in /sys/fs/bpf, does."""
    pod = lab.find(VICTIM)
    assert isinstance(pod, Pod)
    for direction in ("ingress", "egress"):
        path = lab.pin_dir("node1") / "links" / f"{pod.interface}-{direction}"
        if how == "detached":
            libbpf.link_detach(str(path))
        else:
            path.unlink()
    # A link that was detached looks like one that works: nobody reports it, so it is looked for.
    wait_until(lambda: reaches(lab, VICTIM), 20.0, lambda: "the pod is cut off for good")
    lab.wait_ready(["node1"])


def test_an_interface_that_is_renamed_stays_served(lab: Lab) -> None:
    pod = lab.find(VICTIM)
    assert isinstance(pod, Pod)
    for old, new in ((pod.interface, "renamed0"), ("renamed0", pod.interface)):
        lab.exec("node1", ["ip", "link", "set", old, "name", new], check=True)
        for _ in range(4):
            assert reaches(lab, VICTIM)
            time.sleep(0.5)
        lab.wait_ready(["node1"])


def test_an_interface_that_is_made_anew_under_its_name_is_served(
    lab: Lab, responder: Responder
) -> None:
    pod, node = lab.find(VICTIM), lab.node("node1")
    assert isinstance(pod, Pod)
    for _ in range(3):
        network.remove_pod(node, pod)
        network.build_pod(lab.state.topology, node, pod)
        wait_until(lambda: reaches(lab, VICTIM), 20.0, lambda: "the new interface is not served")
    responder.serve(lab, [VICTIM])
    publish(lab, {"moving": [VICTIM]})
    assert answers(lab, "pod1", addresses("moving")[0]) == {VICTIM}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_pod_that_starts_while_no_agent_lives_reaches_services(
    lab: Lab, traffic: Bystanders, end: int
) -> None:
    """At once after an orderly end, within seconds after a kill; the next agent takes over, and
    connections that were made meanwhile go on."""
    lab.stop_agent("node1", end)
    pod = lab.add_pod("node1")
    try:
        if end == signal.SIGKILL:
            wait_until(lambda: reaches(lab, pod.name), BEAT, lambda: "it never reaches a service")
        assert reaches(lab, pod.name)
        assert reaches(lab, "pod1")
        with process_in(lab, pod.name) as process:
            kept = [process.connect(TCP, address, PORT) for address in addresses("steady")]
            for sock in kept:
                assert sock.ask("before") in SERVERS
            traffic.unharmed()
            lab.start_agent("node1")
            lab.wait_ready(["node1"])
            for sock in kept:
                assert sock.ask("after") in SERVERS
        assert answers(lab, pod.name, addresses("steady")[0]) <= set(SERVERS)
    finally:
        lab.remove_pod(pod.name)


def test_an_agent_that_is_stopped_and_continued_catches_up(lab: Lab, traffic: Bystanders) -> None:
    """SIGSTOP, as a node without memory or processor time for it is like."""
    known = lab.agent("node1")
    assert known
    os.kill(known.pid, signal.SIGSTOP)
    try:
        lab.apply("moving", service(lab, "moving", ["pod3"]))
        traffic.unharmed(48)
    finally:
        os.kill(known.pid, signal.SIGCONT)
    lab.wait_programmed("default/moving", [endpoint(lab, "pod3")])
    assert answers(lab, "pod1", addresses("moving")[0]) == {"pod3"}


def test_a_node_of_a_name_that_no_object_has_is_told(lab: Lab) -> None:
    """Without its object a node takes every endpoint for another's."""
    known = objects.nodes(lab.state.topology)
    try:
        lab.apply("nodes", [node for node in known if node["metadata"]["name"] != "node1"])
        wait_said(lab, "node1", "node1", "Node")
    finally:
        lab.apply("nodes", known)
