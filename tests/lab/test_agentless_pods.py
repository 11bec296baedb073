"""A pod that starts while no agent lives: nobody puts programs on its interface: the socket
hooks serve it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Pod
from tests.lab.support.labs import PORT, TCP, UDP, Responder, addresses, publish
from tests.lab.support.remote_sockets import RemoteProcess, process_in
from tests.lab.support.socket_entries import both_families, entries, error_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SIGTERM, SIGKILL = 15, 9


@pytest.fixture(scope="module")
def served(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("gone", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        publish(made, {"web": ["pod2", "pod4"], "none": []})
        yield made


@pytest.fixture(params=[SIGTERM, SIGKILL], ids=["sigterm", "sigkill"])
def newcomer(request: pytest.FixtureRequest, served: Lab) -> Iterator[tuple[Pod, int]]:
    """A pod of a node whose agent ended before, by this signal."""
    served.stop_agent("node1", request.param)
    pod = served.add_pod("node1")
    try:
        yield pod, request.param
    finally:
        served.remove_pod(pod.name)
        served.start_agent("node1")
        served.wait_ready(["node1"])


def reaches(process: RemoteProcess, address: str) -> bool:
    sock = process.open(TCP, int(":" in address))
    sock.settimeout(0.5)
    try:
        sock.connect([address, PORT])
        return sock.ask("hello") in ("pod2", "pod4")
    except OSError:
        return False
    finally:
        sock.close()


def test_it_reaches_services(served: Lab, newcomer: tuple[Pod, int]) -> None:
    pod, signal = newcomer
    with process_in(served, pod.name) as process:
        if signal == SIGTERM:
            assert reaches(process, addresses("web")[0]), "at once"
        wait_until(lambda: reaches(process, addresses("web")[0]))
        for family in (0, 1):
            address = addresses("web")[family]
            for kind in (TCP, UDP):
                sock = process.connect(kind, address, PORT)
                assert sock.ask("hello") in ("pod2", "pod4")
                assert sock.getpeername()[:2] == [address, PORT]
            refused = process.open(TCP, family)
            nobody = [addresses("none")[family], PORT]
            assert error_of(lambda: refused.connect(nobody)) == errno.ECONNREFUSED  # noqa: B023


@both_families
def test_with_an_agent_pods_are_served_on_the_wire(served: Lab, family: int) -> None:
    """Also by the one that follows, for the pods that were there before it."""
    served.stop_agent("node1", SIGKILL)
    pod = served.add_pod("node1")
    try:
        with process_in(served, pod.name) as process:
            address = addresses("web")[family]
            wait_until(lambda: reaches(process, address))
            early = process.connect(UDP, address, PORT)
            assert early.ask("hello") in ("pod2", "pod4")
            noted = entries(served, "socket_peers")
            served.start_agent("node1")
            served.wait_ready(["node1"])
            assert process.connect(TCP, address, PORT).ask("hello") in ("pod2", "pod4")
            assert entries(served, "socket_peers") == noted, "not by the hooks"
            assert early.ask("still there?") in ("pod2", "pod4")
            assert early.getpeername()[:2] == [address, PORT]
    finally:
        served.remove_pod(pod.name)


def test_what_a_pod_was_told_meanwhile_is_closed_when_it_is_stale(served: Lab) -> None:
    publish(served, {"brief": ["pod2"]}, nodes=["node1", "node2"])
    served.stop_agent("node1", SIGTERM)
    with process_in(served, "pod1") as process:
        sock = process.connect(UDP, addresses("brief")[0], PORT)
        assert sock.ask("hello") == "pod2"
        served.start_agent("node1")
        served.wait_ready(["node1"])
        publish(served, {"brief": ["pod4"]})

        def moved() -> bool:
            try:
                sock.connect([addresses("brief")[0], PORT])
                return sock.ask("where?") == "pod4"
            except OSError:
                return False

        wait_until(moved)
