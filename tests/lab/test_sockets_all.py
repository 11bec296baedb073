"""`--socket-lb all`: pods' sockets too; changing the mode, and what cleanup leaves."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from ebpf.hooks.cgroup import SocketAttacher
from lbctl import status
from lbctl.lab import agents
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint, Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import (
    PORT,
    PORTS,
    TARGET,
    TCP,
    UDP,
    Responder,
    addresses,
    endpoint,
    publish,
)
from tests.lab.support.remote_sockets import process_in
from tests.lab.support.socket_entries import both_families, entries, error_of, flows
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

BACKENDS = ["pod1", "pod2", "pod3", "node1"]
NODE_PORT, EXTERNAL_PORT = 30090, 45990


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    options = AgentOptions(extra=("--socket-lb", "all"))
    made = make_lab("all", nodes=1, pods=4, options=options)
    with Responder() as responder:
        responder.serve(made, ["node1", *(pod.name for pod in made.pods)])
        publish(made, {"all": BACKENDS, "one": ["pod2"], "other": ["pod2"], "none": []})
        publish(made, {"some": ["pod2", "pod3"], "same": ["pod2", "pod3"]})
        yield made


def restart_with(lab: Lab, mode: str) -> None:
    lab.stop_agent("node1")
    lab.start_agent("node1", AgentOptions(extra=("--socket-lb", mode)))
    lab.wait_ready(["node1"])


@both_families
def test_a_pods_connection_costs_nothing_on_the_wire(lab: Lab, family: int) -> None:
    address = addresses("all")[family]
    with process_in(lab, "pod1") as pod:
        socks = [pod.connect(TCP, address, PORT) for _ in range(80)]
        assert {sock.ask("hello") for sock in socks} == set(BACKENDS)
        assert all(sock.getpeername()[:2] == [address, PORT] for sock in socks)
        assert entries(lab, "socket_peers") == len(socks)
        assert flows(lab, address) == []
        missing = pod.open(TCP, family)
        assert (
            error_of(lambda: missing.connect([addresses("none")[family], PORT]))
            == errno.ECONNREFUSED
        )
    wait_until(lambda: entries(lab, "socket_peers") == 0)


@pytest.mark.parametrize("member", ["pod1", "pod2", "node1"])
@pytest.mark.parametrize(
    ("family", "mapped"), [(0, False), (1, False), (0, True)], ids=["ipv4", "ipv6", "mapped"]
)
def test_who_are_asked_at_once_answer_by_their_own_names(
    lab: Lab, member: str, family: int, mapped: bool
) -> None:
    """Two services and their only endpoint, by one socket that is not connected."""
    prefix = "::ffff:" * mapped
    one, other = ([prefix + addresses(n)[family], PORT] for n in ("one", "other"))
    pod = [prefix + lab.find("pod2").addresses[family], TARGET]
    with process_in(lab, member) as process:
        for targets in ([one, other, other], [other, one, one, other], [pod, one, pod, other]):
            sock = process.open(UDP, int(mapped or family))
            for _ in range(3):
                for number, target in enumerate(targets):
                    sock.sendto(f"to {number}", target)
                heard = [sock.recvfrom(1000) for _ in targets]
                numbers = [int(text.split()[-1]) for text, _ in heard]
                assert [targets[n] for n in numbers] == [who[:2] for _, who in heard]
                assert sorted(numbers) == [*range(len(targets))]
            sock.close()


@both_families
def test_each_of_two_services_keeps_its_endpoint(lab: Lab, family: int) -> None:
    """Asked at once by one socket: by chance their endpoints are the same or not."""
    services = [addresses(name)[family] for name in ("some", "same")]
    with process_in(lab, "pod1") as pod:
        for _ in range(8):
            sock = pod.open(UDP, family)
            heard: set[tuple[str, str, str]] = set()
            for _ in range(4):
                for service in services:
                    sock.sendto("hello", [service, PORT])
                for _ in services:
                    text, who = sock.recvfrom(1000)
                    server, _, port = text.split()[:3]
                    heard.add((who[0], server, port))
            assert sorted(who for who, _, _ in heard) == sorted(services)


@both_families
@pytest.mark.parametrize("port", [NODE_PORT, EXTERNAL_PORT])
def test_what_a_pods_server_answers_is_no_call(lab: Lab, family: int, port: int) -> None:
    """The node asks from a port that is a service's too."""
    node, pod = (lab.find(name).addresses[family] for name in ("node1", "pod3"))
    ports = [Port(EXTERNAL_PORT, TARGET, "udp", "UDP", NODE_PORT)]
    spec = {"type": "NodePort", "externalIPs": [*lab.find("node1").addresses]}
    lab.apply("shared", lab.service("shared", ports, [endpoint(lab, "pod2")], spec=spec))
    lab.wait_programmed("default/shared", [endpoint(lab, "pod2")])
    with process_in(lab, "pod3") as there, process_in(lab, "node1") as here:
        server, client = there.open(UDP, family), here.open(UDP, family)
        server.bind([pod, 7100])
        client.bind([node, port])
        for number in range(3):
            client.sendto(f"question {number}", [pod, 7100])
            text, who = server.recvfrom(1000)
            assert (text, who[:2]) == (f"question {number}", [node, port])
            server.sendto(f"answer {number}", who)
            text, who = client.recvfrom(1000)
            assert (text, who[:2]) == (f"answer {number}", [pod, 7100])
        caller = there.open(UDP, family)  # it is there for others meanwhile
        assert caller.ask("who are you?", node, port) == "pod2"
    lab.withdraw("shared")


def test_a_pods_stale_socket_is_closed_in_its_namespace(lab: Lab) -> None:
    publish(lab, {"fading": ["pod4"]})  # which is in no other service
    with process_in(lab, "pod1") as pod, process_in(lab, "node1") as node:
        # Two names for what is reached, and a neighbour that has done nothing wrong.
        socks = {kind: pod.connect(kind, addresses("fading")[0], PORT) for kind in (TCP, UDP)}
        of_node = node.connect(UDP, addresses("fading")[0], PORT)
        other = pod.connect(TCP, addresses("one")[0], PORT)
        assert {sock.ask("hello") for sock in (*socks.values(), of_node)} == {"pod4"}
        pod4, pod3 = endpoint(lab, "pod4"), endpoint(lab, "pod3")
        leaving = Endpoint(pod4, ready=False, serving=True, terminating=True)
        lab.apply("fading", lab.service("fading", PORTS, [leaving, Endpoint(pod3)]))
        lab.wait_programmed("default/fading", [pod3])
        publish(lab, {"fading": ["pod3"]})

        def heard(kind: socket.SocketKind) -> object:
            return socks[kind].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

        wait_until(lambda: heard(TCP) == errno.ECONNABORTED)
        wait_until(lambda: heard(UDP) == errno.ECONNABORTED)
        wait_until(
            lambda: of_node.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        )
        assert other.ask("still there?") == "pod2"


def test_what_left_while_no_agent_ran_is_closed_by_the_next(lab: Lab) -> None:
    publish(lab, {"unseen": ["pod2"]})
    with process_in(lab, "node1") as node:
        sock = node.connect(UDP, addresses("unseen")[0], PORT)
        assert sock.ask("hello") == "pod2"
        lab.stop_agent("node1", 9)
        lab.apply("unseen", lab.service("unseen", (), []))
        lab.start_agent("node1")
        lab.wait_ready(["node1"])
        wait_until(
            lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        )


def test_modes_change_with_the_agent(lab: Lab) -> None:
    attacher = SocketAttacher(lab.pin_dir("node1"))
    address = addresses("one")[0]
    with process_in(lab, "pod1") as pod, process_in(lab, "node1") as node:
        old, nobody = pod.connect(TCP, address, PORT), node.open(UDP)
        restart_with(lab, "host")
        assert (old.ask("hello"), old.getpeername()) == ("pod2", [address, PORT])
        before = entries(lab, "socket_peers")
        assert pod.connect(TCP, address, PORT).ask("by wire") == "pod2"
        assert entries(lab, "socket_peers") == before
        restart_with(lab, "off")
        assert attacher.hooks() == []
        assert old.ask("hello") == "pod2"
        said = status.read(lab.pin_dir("node1"))
        assert said is not None
        assert (said.ready, said.socket_lb) == (True, "off")
        assert error_of(lambda: nobody.connect([addresses("none")[0], PORT])) == 0
        assert nobody.getpeername() == [addresses("none")[0], PORT], "UDP, and nobody asked"
    restart_with(lab, "all")
    assert len(attacher.hooks()) == 9


def test_cleanup_detaches(lab: Lab) -> None:
    """Last: nothing is left of the instance."""
    lab.stop_agent("node1")
    pin_dir = str(lab.pin_dir("node1"))
    with process_in(lab, "node1") as node:
        kept = node.connect(TCP, addresses("one")[0], PORT)
        subprocess.run(
            [sys.executable, "-m", "lbctl", "cleanup", "--yes", "--pin-dir", pin_dir],
            check=True,
            capture_output=True,
            timeout=30,
            env=agents.environment(),
        )
        assert kept.ask("hello") == "pod2"
        assert kept.getpeername()[0] == lab.find("pod2").addresses[0]
