"""Processes of the node itself: served at their sockets, by the programs on the node's cgroup."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ebpf.hooks.cgroup import SocketAttacher
from lbctl import status
from lbctl.agent import stalesockets
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint, Port
from lbctl.lab.topology import Pod
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    UDP,
    Responder,
    addresses,
    endpoint,
    publish,
)
from tests.lab.support.labs import PORTS as PLAIN_PORTS
from tests.lab.support.remote_sockets import RemoteProcess, RemoteSocket, process_in
from tests.lab.support.socket_entries import both_families, entries, error_of, flows
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

BACKENDS = ["pod1", "pod2", "node1", "node2"]
KINDS = {"tcp": TCP, "udp": UDP}
both_kinds = pytest.mark.parametrize("kind", KINDS)
NODE_PORT = 30080
SOCKETS = 28  # which of two endpoints one stays without by chance once in 10^8 times
EXTERNAL = ("192.0.2.80", "2001:db8:2::80")
BALANCER = ("192.0.2.81", "2001:db8:2::81")
PORTS = (
    Port(PORT, TARGET, "tcp", "TCP", NODE_PORT),
    Port(PORT, TARGET, "udp", "UDP", NODE_PORT),
)


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("s", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, ["node1", "node2", *(pod.name for pod in made.pods)])
        publish(made, {"all": BACKENDS, "one": ["pod1"], "none": []})
        publish_outside(made)
        yield made


def publish_outside(lab: Lab) -> None:
    """A service with every kind of address."""
    objects = lab.service(
        "outside",
        PORTS,
        [endpoint(lab, "pod2")],
        spec={"type": "LoadBalancer", "externalIPs": list(EXTERNAL)},
    )
    objects[0]["status"] = {"loadBalancer": {"ingress": [{"ip": a} for a in BALANCER]}}
    lab.apply("outside", objects)
    lab.wait_programmed("default/outside", [endpoint(lab, "pod2")])


@pytest.fixture
def node(lab: Lab) -> Iterator[RemoteProcess]:
    with process_in(lab, "node1") as process:
        yield process


@both_kinds
@both_families
def test_a_service_is_reached_and_keeps_its_name(
    lab: Lab, node: RemoteProcess, family: int, kind: str
) -> None:
    address = addresses("all")[family]
    answered = set()
    for number in range(60):
        sock = node.connect(KINDS[kind], address, PORT)
        assert sock.getpeername()[:2] == [address, PORT]
        answered.add(sock.ask(f"hello {number}"))
        sock.close()
    assert answered == set(BACKENDS)
    assert entries(lab, "socket_peers") == 0


@both_kinds
def test_an_ipv6_socket_that_speaks_ipv4(node: RemoteProcess, kind: str) -> None:
    mapped = f"::ffff:{addresses('one')[0]}"
    sock = node.connect(KINDS[kind], mapped, PORT)
    assert sock.ask("hello") == "pod1"
    assert sock.getpeername()[:2] == [mapped, PORT]


@pytest.mark.parametrize(
    ("family", "mapped"), [(0, False), (1, False), (0, True)], ids=["ipv4", "ipv6", "mapped"]
)
def test_an_unconnected_socket_sees_the_service_answer(
    lab: Lab, node: RemoteProcess, family: int, mapped: bool
) -> None:
    address = ("::ffff:" if mapped else "") + addresses("all")[family]
    sock = node.open(UDP, int(mapped or family))
    answered = set()
    for number in range(20):
        sock.sendto(f"datagram {number}", [address, PORT])
        text, sender = sock.recvfrom(1000)
        answered.add(text.split()[0])
        assert sender[:2] == [address, PORT]
    assert len(answered) == 1, "one socket keeps one backend"
    assert entries(lab, "socket_choices") >= 1
    sock.close()
    assert entries(lab, "socket_peers") == entries(lab, "socket_choices") == 0


def test_an_unconnected_socket_moves_on(lab: Lab, node: RemoteProcess) -> None:
    publish(lab, {"moving": ["pod1"]})
    address = addresses("moving")[0]
    sock = node.open(UDP)
    assert sock.ask("first", address, PORT) == "pod1"
    publish(lab, {"moving": ["pod1", "pod2"]})
    assert {sock.ask(f"stay {n}", address, PORT) for n in range(10)} == {"pod1"}
    publish(lab, {"moving": ["pod2"]})
    sock.sendto("then", [address, PORT])
    text, sender = sock.recvfrom(1000)
    assert (text.split()[0], sender[:2]) == ("pod2", [address, PORT])
    publish(lab, {"moving": []})
    assert error_of(lambda: sock.sendto("nobody", [address, PORT])) == errno.ECONNREFUSED


@both_kinds
@both_families
def test_what_nobody_serves_is_refused(node: RemoteProcess, family: int, kind: str) -> None:
    for name, port in (("none", PORT), ("one", PORT + 1)):
        sock = node.open(KINDS[kind], family)
        address = [addresses(name)[family], port]
        if kind == "udp":  # connect() only asks: test_node_questions.py
            assert error_of(partial(sock.sendto, "x", address)) == errno.ECONNREFUSED
        else:
            assert error_of(partial(sock.connect, address)) == errno.ECONNREFUSED


@both_kinds
@both_families
def test_every_kind_of_address(lab: Lab, node: RemoteProcess, family: int, kind: str) -> None:
    own = lab.find("node1").addresses[family]
    for address, port in (
        (own, NODE_PORT),
        (EXTERNAL[family], PORT),
        (BALANCER[family], PORT),
    ):
        sock = node.connect(KINDS[kind], address, port)
        assert sock.ask("hello") == "pod2"
        assert sock.getpeername()[:2] == [address, port]


def test_a_local_policy_without_local_endpoint(lab: Lab, node: RemoteProcess) -> None:
    spec = {"internalTrafficPolicy": "Local"}
    lab.apply("here", lab.service("here", PORTS, [endpoint(lab, "pod2")], spec=spec))
    lab.wait_programmed("default/here", [endpoint(lab, "pod2")], nodes=["node2"])
    address = addresses("here")[0]
    sock = node.open(TCP)

    def connect() -> int:
        return error_of(lambda: sock.connect([address, PORT]))

    wait_until(lambda: connect() == errno.EHOSTUNREACH)
    with process_in(lab, "node2") as there:
        assert there.connect(TCP, address, PORT).ask("hello") == "pod2"


@pytest.mark.parametrize("allowed", [True, False])
def test_source_ranges_see_the_nodes_address(lab: Lab, node: RemoteProcess, allowed: bool) -> None:
    own = lab.find("node1").addresses[0]
    name, balancer = f"ranges{allowed:d}", f"192.0.2.{90 + allowed}"
    ranges = [f"{own}/32" if allowed else "203.0.113.0/24"]
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}
    objects = lab.service(name, PLAIN_PORTS, [endpoint(lab, "pod2")], spec=spec)
    objects[0]["status"] = {"loadBalancer": {"ingress": [{"ip": balancer}]}}
    lab.apply(name, objects)
    lab.wait_programmed(f"default/{name}", [endpoint(lab, "pod2")])
    assert node.connect(TCP, addresses(name)[0], PORT).ask("hello") == "pod2"
    guarded = node.open(TCP)
    refused = error_of(partial(guarded.connect, [balancer, PORT]))
    assert refused == (0 if allowed else errno.EHOSTUNREACH)


def test_affinity_is_the_nodes(lab: Lab, node: RemoteProcess) -> None:
    pods = [endpoint(lab, name) for name in BACKENDS]
    lab.apply("sticky", lab.service("sticky", PORTS, pods, spec={"sessionAffinity": "ClientIP"}))
    lab.wait_programmed("default/sticky", pods)
    answered = {
        node.connect(TCP, addresses("sticky")[0], PORT).ask(f"number {number}")
        for number in range(20)
    }
    with process_in(lab, "node1") as other:
        answered.add(other.connect(TCP, addresses("sticky")[0], PORT).ask("another"))
    assert len(answered) == 1


def test_pods_are_served_on_the_wire(lab: Lab) -> None:
    before = entries(lab, "socket_peers")
    with process_in(lab, "pod1") as pod:
        sock = pod.connect(TCP, addresses("all")[0], PORT)
        sock.ask("hello")
        assert sock.getpeername() == [addresses("all")[0], PORT]
        assert entries(lab, "socket_peers") == before
        assert flows(lab, addresses("all")[0])


def test_hooks_outlive_their_agent(lab: Lab) -> None:
    lab.stop_agent("node1", 9)
    try:
        with process_in(lab, "node1") as node:
            assert node.connect(TCP, addresses("one")[0], PORT).ask("hello") == "pod1"
    finally:
        lab.start_agent("node1")
        lab.wait_ready(["node1"])
    assert len(SocketAttacher(lab.pin_dir("node1")).hooks()) == 9


def set_endpoints(lab: Lab, name: str, endpoints: list[Endpoint]) -> None:
    serving = [e.pod for e in endpoints if e.ready]
    lab.apply(name, lab.service(name, PLAIN_PORTS, endpoints))
    # A node falls back to its own terminating pods: not those of this one.
    lab.wait_programmed(f"default/{name}", serving, nodes=["node1"])


def failure(sock: RemoteSocket) -> int:
    """What a socket says when used, 0 if nothing is wrong with it."""
    return error_of(lambda: sock.ask("still there?"))


@pytest.mark.parametrize(
    ("family", "mapped"), [(0, False), (1, False), (0, True)], ids=["ipv4", "ipv6", "mapped"]
)
def test_a_connected_udp_socket_ends_with_its_backend(
    lab: Lab, node: RemoteProcess, family: int, mapped: bool
) -> None:
    name = f"udp{family}{mapped:d}"
    publish(lab, {name: ["pod1", "pod2"]})
    address = ("::ffff:" if mapped else "") + addresses(name)[family]
    socks = [node.connect(UDP, address, PORT, int(mapped or family)) for _ in range(SOCKETS)]
    places = [sock.ask("hello") for sock in socks]
    assert set(places) == {"pod1", "pod2"}
    before = entries(lab, "socket_peers"), entries(lab, "socket_choices")
    publish(lab, {name: ["pod2"]})
    gone = [sock for sock, place in zip(socks, places, strict=True) if place == "pod1"]
    for table, count in zip(("socket_peers", "socket_choices"), before, strict=True):
        wait_until(partial(has_entries, lab, table, count - len(gone)))
    for sock, place in zip(socks, places, strict=True):
        # Who waits for an answer hears ECONNABORTED, who sends, that the socket is not connected.
        if place == "pod1":
            wait_until(partial(hears, sock, errno.ECONNABORTED))
        assert hears(sock, 0)
        assert failure(sock) == (errno.EDESTADDRREQ if place == "pod1" else 0)
    gone[0].connect([address, PORT])
    assert gone[0].ask("again") == "pod2"


def hears(sock: RemoteSocket, error: int) -> bool:
    """Whether this is what the socket has to say; it says it once."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == error)


def has_entries(lab: Lab, name: str, count: int) -> bool:
    return entries(lab, name) == count


@both_families
def test_a_tcp_socket_ends_only_when_its_endpoint_is_known_to_be_dead(
    lab: Lab, node: RemoteProcess, family: int
) -> None:
    # The first is in no other service: elsewhere it would be alive.
    name, pods = f"tcp{family}", [lab.find("pod4"), lab.find("pod2")]
    assert isinstance(pods[0], Pod)
    assert isinstance(pods[1], Pod)
    stays = Endpoint(pods[1])
    set_endpoints(lab, name, [Endpoint(pods[0]), stays])
    socks = [node.connect(TCP, addresses(name)[family], PORT) for _ in range(SOCKETS)]
    places = [sock.ask("hello") for sock in socks]
    assert set(places) == {"pod4", "pod2"}
    direct = node.connect(TCP, pods[0].addresses[family], TARGET)
    terminating = Endpoint(pods[0], ready=False, serving=True, terminating=True)
    set_endpoints(lab, name, [terminating, stays])
    time.sleep(3 * stalesockets.DELAY_SECONDS)
    assert [failure(sock) for sock in socks] == [0] * len(socks)
    set_endpoints(lab, name, [stays])
    first = socks[places.index("pod4")]
    wait_until(lambda: failure(first) in (errno.ECONNABORTED, errno.EPIPE))
    for sock, place in zip(socks, places, strict=True):
        assert (failure(sock) == 0) == (place == "pod2"), place
    assert failure(direct) == 0, "nobody translated this one"
    assert status.read(lab.pin_dir("node1")) is not None
    wait_until(lambda: (s := status.read(lab.pin_dir("node1"))) and s.sockets_closed)


@both_families
def test_a_tcp_socket_outlives_its_endpoints_leave(
    lab: Lab, node: RemoteProcess, family: int
) -> None:
    """Another selector (blue-green), or a slice that is made anew: the pod lives."""
    name = f"green{family}"
    publish(lab, {name: ["pod2"]})
    sock = node.connect(TCP, addresses(name)[family], PORT)
    assert sock.ask("hello") == "pod2"
    for members in (["pod1"], [], ["pod3"]):
        publish(lab, {name: members})
        time.sleep(3 * stalesockets.DELAY_SECONDS)
        assert sock.ask("still there?") == "pod2"


def test_a_tcp_socket_outlives_its_service(lab: Lab, node: RemoteProcess) -> None:
    publish(lab, {"brief": ["pod1"]})
    sock = node.connect(TCP, addresses("brief")[0], PORT)
    assert sock.ask("hello") == "pod1"
    lab.withdraw("brief")
    again = node.open(TCP)
    again.settimeout(0.2)
    wait_until(lambda: error_of(lambda: again.connect([addresses("brief")[0], PORT])))
    time.sleep(3 * stalesockets.DELAY_SECONDS)
    assert sock.ask("still there?") == "pod1"
