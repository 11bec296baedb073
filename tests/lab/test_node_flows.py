"""Processes of the node whose calls no hook translates: their packets are met at the uplink."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import PORT, TARGET, TCP, UDP, Responder, addresses, publish
from tests.lab.support.remote_sockets import TIMEOUT, RemoteProcess, RemoteSocket, process_in
from tests.lab.support.socket_entries import both_families, entries, error_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SPEECH = pytest.mark.parametrize(
    ("family", "mapped"), [(0, False), (1, False), (0, True)], ids=["ipv4", "ipv6", "mapped"]
)
# Of this node, and of the other one.
ENDPOINTS = pytest.mark.parametrize("pod", ["pod1", "pod3"], ids=["local", "remote"])


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("w", nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, ["node1", "node2", *(pod.name for pod in made.pods)])
        publish(made, {"a": ["pod1"], "b": ["pod1"], "two": ["pod1", "pod3"], "none": []})
        yield made


@pytest.fixture
def node(lab: Lab) -> Iterator[RemoteProcess]:
    with process_in(lab, "node1") as process:
        yield process


def called(address: str, mapped: bool) -> str:
    return ("::ffff:" if mapped else "") + address


def hears(sock: RemoteSocket) -> str:
    """Who answers a datagram, or what the socket says instead."""
    try:
        return sock.ask("anyone?")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "nothing")


@SPEECH
@ENDPOINTS
def test_a_udp_socket_that_was_connected_before_its_service(
    lab: Lab, node: RemoteProcess, pod: str, family: int, mapped: bool
) -> None:
    """It follows the service from then on, and its owner never learns of it."""
    name = f"late{pod}{family}{mapped:d}"
    target = [called(addresses(name)[family], mapped), PORT]
    sock = node.open(UDP, int(mapped or family))
    sock.settimeout(0.3)
    sock.connect(target)
    publish(lab, {name: [pod]})
    wait_until(lambda: hears(sock) == pod)
    assert sock.getpeername()[:2] == target
    other = "pod3" if pod == "pod1" else "pod1"
    publish(lab, {name: [other]})
    wait_until(lambda: hears(sock) == other)
    sock.settimeout(TIMEOUT)
    assert {hears(sock) for _ in range(10)} == {other}


@SPEECH
def test_sending_is_refused_where_connecting_was_not(
    node: RemoteProcess, family: int, mapped: bool
) -> None:
    for name, port in (("none", PORT), ("a", PORT + 1)):
        sock = node.open(UDP, int(mapped or family))
        sock.settimeout(0.5)
        sock.connect([called(addresses(name)[family], mapped), port])
        sock.send("anyone?")
        wait_until(lambda: hears(sock) == "ECONNREFUSED")  # noqa: B023


@both_families
def test_large_datagrams_go_both_ways(lab: Lab, node: RemoteProcess, family: int) -> None:
    name = f"large{family}"
    sock = node.open(UDP, family)
    sock.settimeout(0.3)
    sock.connect([addresses(name)[family], PORT])
    publish(lab, {name: ["pod3"]})
    wait_until(lambda: hears(sock) == "pod3")
    sock.settimeout(TIMEOUT)
    text = "x" * 8000
    sock.send(text)
    while not (answer := str(sock.recv(65535))).endswith(text):
        assert answer.endswith("anyone?"), "one that was late"


def bound(node: RemoteProcess, lab: Lab, family: int, mapped: bool, port: int) -> RemoteSocket:
    sock = node.open(TCP, int(mapped or family))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind([("::" if family or mapped else "0.0.0.0"), port])
    return sock


@SPEECH
def test_one_source_port_to_two_services_and_their_endpoint(
    lab: Lab, node: RemoteProcess, family: int, mapped: bool
) -> None:
    """The kernel would refuse the second connect(): there is a connection with these ports."""
    port = 45000 + 2 * family + mapped
    own = lab.find("pod1").addresses[family]
    socks = []
    for target in (
        [called(addresses("a")[family], mapped), PORT],
        [called(addresses("b")[family], mapped), PORT],
    ):
        sock = bound(node, lab, family, mapped, port)
        sock.connect(target)
        assert (sock.ask("hello"), sock.getpeername()[:2]) == ("pod1", target)
        socks.append(sock)
    assert [sock.ask("again") for sock in socks] == ["pod1", "pod1"]
    for sock in socks:
        sock.close()
    service, pod = [called(addresses("a")[family], mapped), PORT], [called(own, mapped), TARGET]
    for number, order in enumerate(((service, pod), (pod, service))):
        pair = [bound(node, lab, family, mapped, port + 100 * (1 + number)) for _ in order]
        for sock, target in zip(pair, order, strict=True):
            sock.connect(target)
        assert [(s.ask("hello"), s.getpeername()[:2]) for s in pair] == [("pod1", t) for t in order]


@SPEECH
@ENDPOINTS
def test_a_shared_port_calls_a_node_port_of_the_node_itself(
    lab: Lab, node: RemoteProcess, pod: str, family: int, mapped: bool
) -> None:
    """Such packets stay on loopback, where no program is: the hook has to serve the socket."""
    number = 30091 if pod == "pod1" else 30092
    publish(lab, {f"own{pod}": [pod]}, [Port(PORT, TARGET, "tcp", "TCP", number)])
    target = [called(lab.find("node1").addresses[family], mapped), number]
    sock = bound(node, lab, family, mapped, number + 15000 + 100 * family + 10 * mapped)
    sock.connect(target)
    assert (sock.ask("hello"), sock.getpeername()[:2]) == (pod, target)


@both_families
def test_what_shares_no_port_is_served_at_its_socket(
    lab: Lab, node: RemoteProcess, family: int
) -> None:
    """A source address or port alone costs nothing per packet."""
    sock = node.open(TCP, family)
    sock.bind([lab.find("node1").addresses[family], 0])
    before = entries(lab, "socket_peers")
    sock.connect([addresses("a")[family], PORT])
    assert sock.ask("hello") == "pod1"
    assert entries(lab, "socket_peers") == before + 1


@both_families
def test_a_shared_port_towards_a_process_of_the_node(
    lab: Lab, node: RemoteProcess, family: int
) -> None:
    """On the wire it could not be served."""
    publish(lab, {"here": ["node1"]})
    sock = bound(node, lab, family, False, 46000 + family)
    sock.connect([addresses("here")[family], PORT])
    assert sock.ask("hello") == "node1"


@both_families
@ENDPOINTS
def test_without_hooks_the_wire_serves_everything(
    lab: Lab, node: RemoteProcess, family: int, pod: str
) -> None:
    """Last: the agent is another afterwards."""
    name = f"off{pod}{family}"
    publish(lab, {name: [pod]})
    lab.stop_agent("node1")
    lab.start_agent("node1", AgentOptions(extra=("--socket-lb", "off")))
    lab.wait_ready(["node1"])
    address = addresses(name)[family]
    socks = [node.connect(TCP, address, PORT) for _ in range(20)]
    assert {sock.ask(f"number {n}") for n, sock in enumerate(socks)} == {pod}
    for sock in socks:
        sock.close()
    datagrams = node.connect(UDP, address, PORT)
    assert {datagrams.ask(f"datagram {n}") for n in range(20)} == {pod}
    unconnected = node.open(UDP, family)
    unconnected.sendto("hello", [address, PORT])
    text, sender = unconnected.recvfrom(1000)
    assert (text.split()[0], sender[:2]) == (pod, [address, PORT])
    refused = node.open(TCP, family)
    assert (
        error_of(lambda: refused.connect([addresses("none")[family], PORT])) == errno.ECONNREFUSED
    )
