"""A node whose uplinks run our programs at their drivers: a namespace with routes and neighbours,
and each packet by both ways, through the driver's program and through TC's with a stack between."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.kernel.support import model
from tests.kernel.support.icmp_errors import aged
from tests.kernel.support.packets import Shape
from tests.kernel.support.programs import Space, unique
from tests.kernel.support.uplink import Passage
from tests.kernel.support.world import NODE, World, beat

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)
LINK = 14
INGRESS = 1  # a test run's device, the loopback, whose address is zero
CLIENTS, BACKENDS = "left", "behind"
MACS = {CLIENTS: "02:00:00:00:01:01", BACKENDS: "02:00:00:00:02:01"}
HOPS = {CLIENTS: "02:00:00:00:01:99", BACKENDS: "02:00:00:00:02:99"}
MTU = 1400  # towards the backends
# Clients whose next hop has not been asked for, and some that nobody can reach.
UNKNOWN_HOP = {4: "8.0.2.9", 6: "2001:db8:86dd::2:9"}
UNROUTED = {4: "9.0.0.9", 6: "2001:db9::9"}
_ROUTES = {
    CLIENTS: (("8.0.0.0/24", "169.254.1.2"), ("2001:db8:86dd::/112", "fd01::2")),
    BACKENDS: (("8.0.1.0/24", "192.0.2.2"), ("2001:db8:86dd::1:0/112", "fd00:192::2")),
}
_UNKNOWN = (("8.0.2.0/24", "169.254.1.3"), ("2001:db8:86dd::2:0/112", "fd01::3"))


_EPOCHS = itertools.count(1)  # hops outlive a test
# The kernel is asked for each packet; what it said of an address is kept.
ASKS, KEEPS = (), ("XDP_KEEPS_HOPS",)


@dataclass(frozen=True, slots=True)
class Passed:
    """What became of a packet: the frame that leaves, by which device, or none (`verdict`)."""

    verdict: int
    frame: bytes
    reasons: dict[str, int]


class DriverNode:
    """Clients are behind one device, backends behind another; the node's own addresses are those
    that masquerading takes."""

    def __init__(self, world: World, flags: Sequence[str]) -> None:
        self.world = world
        self.flags = sum(map(world.flag, ("XDP_SENDS_ALWAYS", *flags)))
        self.space = Space(unique("driver"))
        self.space.ip("link", "add", BACKENDS, "type", "veth", "peer", "name", "far")
        for device, mac in MACS.items():
            self.space.ip("link", "set", device, "addrgenmode", "none", "address", mac, "up")
        self.space.ip("link", "set", "far", "addrgenmode", "none", "up")
        self.space.ip("link", "set", BACKENDS, "mtu", str(MTU))
        addresses = {
            CLIENTS: ("169.254.1.1/24", "fd01::1/64"),
            BACKENDS: (f"{NODE[4]}/24", f"{NODE[6]}/64"),
        }
        for device, (four, six) in addresses.items():
            self.space.ip("addr", "add", four, "dev", device)
            self.space.ip("addr", "add", six, "dev", device, "nodad")
        self.space.run(_forward)
        self.space.run(_stay_on_one_cpu)
        for device, routes in _ROUTES.items():
            for network, hop in routes:
                self.space.ip("route", "add", network, "via", hop, "dev", device)
                self.space.ip("neigh", "add", hop, "lladdr", HOPS[device], "dev", device)
        for network, hop in _UNKNOWN:
            self.space.ip("route", "add", network, "via", hop, "dev", CLIENTS)
        self.devices = {device: self.space.index(device) for device in MACS}
        self.know(INGRESS, "00:00:00:00:00:00")
        for device, mac in MACS.items():
            self.know(self.devices[device], mac, sends=True)

    def send_on(self, beats: int = 1000, **fields: int) -> None:
        """The agent says that drivers do, in an epoch of its own: up to so many beats from now, if
        not always."""
        until = (beat() + beats) % (1 << 32)
        values = {"xdp": self.flags, "fast_until": until, "fast_mtu": 0xFFFF} | fields
        self.world.configure(fast_epoch=next(_EPOCHS), **values)

    def know(self, index: int, mac: str, sends: bool = False) -> None:
        """What the agent says of a device."""
        table = self.world.hash("xdp_devices")
        raw = bytes.fromhex(mac.replace(":", ""))
        flags = self.world.flag("XDP_DEVICE_SENDS") if sends else 0
        table.put(np.uint32(index).tobytes(), raw + struct.pack("=H", flags))
        self.send_on()

    def forget(self, index: int) -> None:
        """It is no device of ours any more."""
        self.world.hash("xdp_devices").delete(np.uint32(index).tobytes())
        self.send_on()

    def forget_neighbours(self, device: str) -> None:
        """The kernel does, behind one device; nobody says so."""
        self.space.ip("neigh", "flush", "nud", "all", "dev", device)

    def passage(self, shape: Shape, address: str = "") -> Passage:
        """A client's conversation, by TC."""
        return _Passage(self.world, shape, address=address, place=self)

    def by_driver(self, frame: bytes) -> Passed:
        """What the driver's program makes of it."""
        done = self.space.run(lambda: self.world.at_driver(frame))
        return Passed(done.verdict, done.frame, done.reasons)

    def by_tc(self, frame: bytes) -> Passed:
        """What TC makes of it where it comes in and, once the stack had it, where it goes out; or
        where it comes in alone, if it is sent on or answered from there. XDP_PASS: it is not
        forwarded, or not by two translations."""
        came = self.space.run(lambda: self.world.from_net(frame))
        if came.verdict == model.DROP:
            return Passed(XDP_DROP, frame, came.reasons)
        if came.verdict == model.REDIRECT:
            return Passed(XDP_REDIRECT, came.frame, came.reasons)
        if came.verdict != model.PASS or came.frame == frame:
            return Passed(XDP_PASS, frame, came.reasons)
        went = self.space.run(lambda: self.world.to_net(through_stack(came.frame)))
        assert went.verdict == model.PASS, went
        return Passed(XDP_REDIRECT, went.frame, came.reasons | went.reasons)

    def close(self) -> None:
        self.space.close()


@dataclass
class _Passage(Passage):
    """The same in the node's namespace."""

    place: DriverNode | None = None

    def _in_place(self, work: object, frame: bytes) -> bytes:
        assert self.place is not None
        return self.place.space.run(lambda: work(frame))  # type: ignore[operator,no-any-return]

    def come_in(self, frame: bytes) -> bytes:
        return self._in_place(super().come_in, frame)

    def go_out(self, frame: bytes) -> bytes:
        return self._in_place(super().go_out, frame)


def through_stack(frame: bytes) -> bytes:
    """As a router sends it on, but for the link header: one hop older, and without padding."""
    end = model.parse(frame).end
    return frame[:LINK] + aged(frame[:end])


class Tables:
    """All that programs write, as it was at some moment."""

    def __init__(self, world: World) -> None:
        names = [n for n in world.maps if n.startswith(("cells", "states", "control", "held"))]
        self._maps = {
            name: world.array(name).records.view(np.uint64)  # megabytes: compared as numbers
            for name in (*names, "service_counters", "backend_live", "cpus", "services")
        }
        self._before = {name: found.copy() for name, found in self._maps.items()}

    def restore(self) -> None:
        """As it was then."""
        for name, found in self._maps.items():
            found[:] = self._before[name]

    def differing(self, other: Tables | None = None) -> list[str]:
        """Which say something else than then, or than another moment's."""
        return [
            name
            for name, found in self._maps.items()
            if not np.array_equal(self._before[name], other._before[name] if other else found)
        ]


def both_ways(node: DriverNode, frame: bytes) -> tuple[Passed, Passed, list[str]]:
    """By the driver, and by TC from the same beginning; which tables differ after that."""
    before = Tables(node.world)
    for _ in range(2):  # between the two another beat may have begun, but not twice
        got = node.by_driver(frame)
        after = Tables(node.world)
        before.restore()
        expected = node.by_tc(frame)
        differing = Tables(node.world).differing(after)
        if not differing:
            break
        before.restore()
    return got, expected, differing


def patched(frame: bytes, at: int, new: bytes, right: bool = True) -> bytes:
    """Other bytes there; the IPv4 header's checksum is made right for them."""
    out = bytearray(frame)
    out[at : at + len(new)] = new
    layout = model.parse(frame)
    if right and layout.family == 4:
        model.fix_ipv4_sum(out, layout.network, layout.transport)
    return bytes(out)


def unfinished(frame: bytes) -> bytes:
    """As a virtual device hands it over whose peer left the checksum to it; without one at all the
    same."""
    at = model.parse(frame)
    place = at.transport + model.CHECKSUM_AT[at.protocol]
    if at.protocol == model.UDP and frame[place : place + 2] == b"\0\0":
        return frame
    source, destination = at.addresses
    pseudo = frame[source] + frame[destination]
    pseudo += struct.pack("!II", at.end - at.transport, at.protocol)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return frame[:place] + struct.pack("!H", total) + frame[place + 2 :]


def _stay_on_one_cpu() -> None:
    """Of the calling thread: each CPU has its own chance, and its own hops."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _forward() -> None:
    """In the calling thread's namespace."""
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")


@pytest.fixture(params=[ASKS, KEEPS], ids=["asks", "keeps"])
def driver_node(world: World, request: pytest.FixtureRequest) -> Iterator[DriverNode]:
    made = DriverNode(world, request.param)
    yield made
    made.close()
