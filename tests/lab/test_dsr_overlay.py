"""Answers straight back where pods are reached through an overlay: node1 sends a client's packets
on by a VXLAN device, and node2 takes the outer header off where they come out of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Node
from tests.lab.support.dsr import BACKEND, PATIENCE, WAYS, flows, publish
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TARGET, TCP, TIMEOUT, UDP, Responder, ask, connected, listen
from tests.lab.support.transfers import Exchange, content, echoed, learn_size, read, text_of

pytestmark = pytest.mark.lab

ECHO = Exposed("echo", 1)
BULK = Exposed("bulk", 2)
DEVICE, MTU = "overlay0", 1450
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("do", nodes=2, pods=1)
    one, two = made.nodes
    for node, other in ((one, two), (two, one)):
        add_overlay(made, node, other)
        for limit in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
            made.exec(node.name, ["sysctl", "-q", f"net.{limit}=0"], check=True)
    with Responder() as responder:
        responder.serve(made, [BACKEND])
        publish(made, ECHO)
        publish(made, BULK, target=TARGET + 1)
        wait_until_it_is_an_uplink(made)
        yield made
    made.down()


def address(node: Node, family: int) -> str:
    return (f"10.77.0.{node.number}", f"fd00:77::{node.number}")[family]


def mac(node: Node) -> str:
    return f"02:00:00:00:07:{node.number:02x}"


def add_overlay(lab: Lab, node: Node, other: Node) -> None:
    """As flannel does: one neighbour and one route for each other node."""
    commands = [
        f"ip link add {DEVICE} type vxlan id 7 dstport 8472 local {node.ipv4} dev eth0 nolearning",
        f"ip link set {DEVICE} address {mac(node)} mtu {MTU} up",
        f"bridge fdb append {mac(other)} dev {DEVICE} dst {other.ipv4}",
    ]
    for family, length in ((0, 24), (1, 64)):
        there = address(other, family)
        commands += [
            f"ip addr add {address(node, family)}/{length} dev {DEVICE}" + " nodad" * family,
            f"ip neigh add {there} lladdr {mac(other)} dev {DEVICE} nud permanent",
            f"ip route replace {other.pod_cidrs[family]} via {there} dev {DEVICE}",
        ]
    for command in commands:
        lab.exec(node.name, command.split(), check=True)


def wait_until_it_is_an_uplink(lab: Lab) -> None:
    """Agents look for new devices; until then the endpoint's node leaves outer headers on."""
    deadline = time.monotonic() + PATIENCE
    where = ECHO.where(lab, "ingress", 0)
    while True:
        try:
            with connected(lab, "outside", where[0], UDP, port=where[1]) as sock:
                sock.settimeout(0.5)
                ask(sock, "is it there?")
                return
        except OSError:
            assert time.monotonic() < deadline


@FAMILY
@pytest.mark.parametrize("way", WAYS)
def test_the_endpoint_sees_the_client(lab: Lab, way: str, family: int) -> None:
    called, port = ECHO.where(lab, way, family)
    for kind in (TCP, UDP):
        with connected(lab, "outside", called, kind, port=port) as sock:
            for number in range(5):
                reply = ask(sock, f"line {number}")
                assert (reply.server, reply.client) == (BACKEND, lab.outside.addresses[family])
            (sent,) = flows(lab, "node1", sock.getsockname()[1], (called, port), kind)
        assert (sent.kind, sent.packets_out) == ("dsr", 0)


@FAMILY
@pytest.mark.parametrize("way", WAYS)
def test_a_large_transfer_finds_its_size(lab: Lab, way: str, family: int) -> None:
    backend = lab.find(BACKEND).addresses[family]
    called, port = BULK.where(lab, way, family)
    with listen(lab, BACKEND, backend, TARGET + 1, TCP) as server:
        exchange = Exchange(server)
        exchange.start()
        with connected(lab, "outside", called, TCP, port=port) as sock:
            sock.sendall(content("up"))
            got = read(sock)
        exchange.join(TIMEOUT)
    assert exchange.got == content("up")
    assert got == content("down")


@FAMILY
def test_datagrams_get_through_once_the_client_knows_the_size(lab: Lab, family: int) -> None:
    called, port = ECHO.where(lab, "ingress", family)
    with connected(lab, "outside", called, UDP, port=port) as sock:
        learn_size(sock, 4000)
        for number in range(10, 15):
            assert echoed(sock, text_of(number, 4000)).server == BACKEND
