"""Both ends of DSR: a node that sends a client's packets on whole, and the endpoint's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from ebpf.kernel import testrun
from tests.kernel.support import checks, model, packets
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, Shape
from tests.kernel.support.programs import Space, unique
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE
from tests.kernel.support.world import NODE, Endpoint, Outcome, Service, World, mapped

DSR_PORT = 6080
BALANCER = {4: "203.0.113.80", 6: "2001:db8:80::80"}  # a load balancer's address, port 80
WAY = {4: "10.244.1.1", 6: "fd00:244::1"}  # the sending node's address on the way to the endpoint
OVERHEAD = {("udp", 4): 28, ("udp", 6): 48, ("ipip", 4): 20, ("ipip", 6): 40}
IN_IP = {4: 4, 6: 41}

# What a client calls: an address and port.
Called = Callable[[Shape], tuple[str, int]]

# What a test is tried with: packets, outer headers, and sums that the kernel looks after.
EACH = pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
FORMS = pytest.mark.parametrize("form", ["udp", "ipip"])
SUMS = pytest.mark.parametrize("sums", [0, testrun.CHECKSUM_COMPLETE], ids=["plain", "complete"])


def set_up(world: World, form: str = "udp") -> None:
    """What the agent says of DSR."""
    world.configure(dsr_port=socket.htons(DSR_PORT))
    flags = world.flag("CONFIG_DSR_IPIP") if form == "ipip" else 0
    world.configure(flags=flags)
    for family, address in NODE.items():
        raw = np.frombuffer(mapped(address), np.uint32)
        world.array("config").records[f"node_port{family}"]["w"][0] = raw


def serve_whole(world: World, shape: Shape, form: str = "udp") -> Service:
    """A load balancer's address and a node port of one service, whose endpoint is remote."""
    set_up(world, form)
    service = world.add_service(
        BALANCER[shape.family],
        80,
        shape.protocol,
        [REMOTE[shape.family]],
        flags=world.flag("SERVICE_DSR"),
        cluster_ip=False,
    )
    kind = world.flag("FRONTEND_NODE_PORT") | world.flag("FRONTEND_SHARED")
    world.call_by(service, NODE[shape.family], NODE_PORT, kind)
    return service


class Sender:
    """The node that a client calls: a namespace whose way to the endpoint is `left`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.space = Space(unique("dsr"))
        self.space.run(_forward)
        for family, length in ((4, "24"), (6, "64")):
            nodad = ["nodad"] * (family == 6)
            self.space.ip("addr", "add", f"{WAY[family]}/{length}", "dev", "left", *nodad)
            for address in (REMOTE[family][0], OUTSIDE[family]):
                self.space.ip("route", "add", address, "dev", "left")

    def serve(self, shape: Shape, form: str = "udp") -> Service:
        """A load balancer's address and a node port of one service, to the remote endpoint."""
        return serve_whole(self.world, shape, form)

    def mtu(self, length: int) -> None:
        """Of the way to the endpoint."""
        self.space.ip("link", "set", "left", "mtu", str(length))

    def take(self, frame: bytes, flags: int = 0) -> Outcome:
        """The frame comes in by the uplink."""
        return self.space.run(lambda: self.world.from_net(frame, flags))

    def send(self, frame: bytes, flags: int = 0) -> bytes:
        """... and is sent on."""
        outcome = self.take(frame, flags)
        assert outcome.verdict == model.REDIRECT, outcome
        return outcome.frame

    def close(self) -> None:
        self.space.close()


@pytest.fixture
def sender(world: World) -> Iterator[Sender]:
    made = Sender(world)
    yield made
    made.close()


def _forward() -> None:
    """In the calling thread's namespace."""
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with open(f"/proc/sys/net/{path}", "w") as stream:
            stream.write("1")


class Receiver:
    """The endpoint's node, in the same world made as new: the other one is done."""

    def __init__(
        self, world: World, shape: Shape, form: str = "udp", here: Sequence[Endpoint] = ()
    ) -> None:
        world.reset()
        set_up(world, form)
        self.world = world
        endpoints = here or [REMOTE[shape.family]]
        self.service = world.add_service(
            BALANCER[shape.family],
            80,
            shape.protocol,
            endpoints,
            local=endpoints,
            cluster_ip=False,
        )
        kind = world.flag("FRONTEND_NODE_PORT") | world.flag("FRONTEND_SHARED")
        world.call_by(self.service, NODE[shape.family], NODE_PORT, kind)

    def move_node(self, family: int, address: str) -> None:
        """The node's address is another than the one that the client has called."""
        kind = self.world.flag("FRONTEND_NODE_PORT") | self.world.flag("FRONTEND_SHARED")
        self.world.set_node(family, address)
        raw = np.frombuffer(mapped(address), np.uint32)
        self.world.array("config").records[f"node_port{family}"]["w"][0] = raw
        self.world.call_by(self.service, address, NODE_PORT, kind)

    def take(self, frame: bytes, flags: int = 0) -> bytes:
        """What the node's stack gets of a frame with an outer header."""
        outcome = self.world.from_net(frame, flags)
        assert outcome.verdict == model.PASS, outcome
        checks.assert_sums(outcome.frame)
        return outcome.frame

    def answer(self, frame: bytes) -> bytes:
        """What leaves by the uplink of a pod's answer."""
        outcome = self.world.to_net(frame)
        assert outcome.verdict == model.PASS, outcome
        checks.assert_sums(outcome.frame)
        return outcome.frame


def balancer(shape: Shape) -> tuple[str, int]:
    """The load balancer's, address and port."""
    return BALANCER[shape.family], 80


def node_port(shape: Shape) -> tuple[str, int]:
    """Of the node that is called, address and port."""
    return NODE[shape.family], NODE_PORT


def call(
    shape: Shape,
    flags: str = "S",
    payload: bytes = b"",
    *,
    to: tuple[str, int] | None = None,
    sport: int = 40000,
    **fields: Any,
) -> bytes:
    """A frame of the client outside, to the load balancer's address unless `to` says otherwise."""
    address, port = to or (BALANCER[shape.family], 80)
    client = OUTSIDE[shape.family]
    return packets.frame(shape, client, sport, address, port, payload, flags=flags, **fields)


def outer_of(frame: bytes, family: int) -> tuple[Any, Any, bytes]:
    """Outer IP header, UDP header or None, and the packet inside, as scapy reads them."""
    ip = Ether(frame)[IP if family == 4 else IPv6]
    size = 20 if family == 4 else 40
    number = ip.proto if family == 4 else ip.nh
    inner = frame[14 + size :]
    if number == IN_IP[family]:
        return ip, None, inner
    assert number == model.UDP
    return ip, UDP(inner[:8]), inner[8:]


def wrapped(frame: bytes, family: int, source: str, endpoint: str, form: str = "udp") -> bytes:
    """A frame as another implementation would send it on."""
    inner = frame[14:]
    udp = UDP(sport=50000, dport=DSR_PORT, chksum=0, len=8 + len(inner))
    number = model.UDP if form == "udp" else IN_IP[family]
    ip = (
        IP(src=source, dst=endpoint, proto=number)
        if family == 4
        else IPv6(src=source, dst=endpoint, nh=number)
    )
    head = Ether(src=packets.CLIENT_MAC, dst=packets.NODE_MAC) / ip
    return bytes(head / (bytes(udp) + inner if form == "udp" else inner))
