"""Real connections through services: both protocols, families, CNI shapes, any place of backend."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.cluster import Lab
from tests.lab.support.labs import (
    PORT,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    client,
    connected,
    inside,
    publish,
)

pytestmark = pytest.mark.lab

# Seen from pod1, which is on node1.
PLACES = {
    "same-node": "pod3",
    "other-node": "pod2",
    "itself": "pod1",
    "host": "node1",
    "other-host": "node2",
}
KINDS = {"tcp": TCP, "udp": UDP}


@pytest.fixture(scope="module", params=["route", "bridge"])
def lab(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab(request.param[0], cni=request.param, nodes=2, pods=2)
    with Responder() as responder:
        responder.serve(made, ["node1", "node2", *(pod.name for pod in made.pods)])
        services = {place: [backend] for place, backend in PLACES.items()}
        publish(made, services | {"all": list(PLACES.values())})
        yield made
    made.down()


def source_seen(lab: Lab, place: str, family: int) -> str:
    """Backends see the pod; a pod that reached itself sees its node, else it would answer
    directly: by the address that the node has on the way to it, as MASQUERADE would show."""
    if place != "itself":
        return lab.find("pod1").addresses[family]
    node = lab.node("node1")
    return (node.pod_gateways if lab.state.topology.cni == "bridge" else node.addresses)[family]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("place", PLACES)
def test_a_backend_is_reached(lab: Lab, place: str, family: int, kind: str) -> None:
    address = addresses(place)[family]
    for _ in range(3):
        with connected(lab, "pod1", address, KINDS[kind]) as sock:
            replies = [ask(sock, f"message {number}") for number in range(3)]
            assert sock.getpeername()[:2] == (address, PORT)
        assert {reply.server for reply in replies} == {PLACES[place]}
        assert {reply.client for reply in replies} == {source_seen(lab, place, family)}
        assert len({(reply.port, reply.connection) for reply in replies}) == 1


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("place", PLACES)
def test_datagrams_are_answered_by_the_services_address(lab: Lab, place: str, family: int) -> None:
    address = addresses(place)[family]
    with client(lab, "pod1", family, UDP) as sock:
        sock.sendto(b"anyone there?", (address, PORT))
        data, answered_by = sock.recvfrom(1000)
    assert data.startswith(PLACES[place].encode())
    assert answered_by[:2] == (address, PORT)


@pytest.mark.parametrize("member", ["pod1", "pod2", "pod3", "pod4"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_connections_spread_over_all_backends(
    lab: Lab, member: str, family: int, kind: str
) -> None:
    answered = set()
    for number in range(200):  # one of five stays out by chance once in 10^19 times
        with connected(lab, member, addresses("all")[family], KINDS[kind]) as sock:
            answered.add(ask(sock, f"number {number}").server)
        if answered == set(PLACES.values()):
            break
    assert answered == set(PLACES.values())


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_many_connections_at_once_keep_apart(lab: Lab, family: int) -> None:
    address = addresses("all")[family]
    with contextlib.ExitStack() as stack:
        socks = [
            stack.enter_context(connected(lab, "pod1", address, kind))
            for kind in (TCP, UDP)
            for _ in range(60)
        ]
        first = [ask(sock, f"first of {number}") for number, sock in enumerate(socks)]
        again = [ask(sock, f"again {number}") for number, sock in enumerate(socks)]
    for before, after in zip(first, again, strict=True):
        assert (before.server, before.port, before.connection) == (
            after.server,
            after.port,
            after.connection,
        )


@pytest.mark.parametrize("who", ["pod", "node", "nobody"])
def test_checksums_are_right_whoever_computes_them(lab: Lab, who: str) -> None:
    """With `tx off` a pod hands out finished checksums; else the device has to fill them in that
    the packet leaves by, which between plain veths no device ever does. With `tx off` at the
    node's ends the kernel does it there, behind our programs, and the receiver checks."""
    devices = {
        "pod": [("pod1", "eth0")],
        "node": [(n.name, d) for n in lab.nodes for d in devices_of(lab, n.name)],
        "nobody": [],
    }[who]
    try:
        for member, device in devices:
            lab.exec(member, ["ethtool", "-K", device, "tx", "off"], check=True)
        for (place, backend), family, kind in itertools.product(
            PLACES.items(), (0, 1), KINDS.values()
        ):
            with connected(lab, "pod1", addresses(place)[family], kind) as sock:
                assert ask(sock, "checked").server == backend
    finally:
        for member, device in devices:
            lab.exec(member, ["ethtool", "-K", device, "tx", "on"], check=True)


def devices_of(lab: Lab, member: str) -> list[str]:
    """Every Ethernet device of a member."""
    names = inside(lab, member, lambda: [name for _, name in socket.if_nameindex()])
    return [name for name in names if name != "lo"]
