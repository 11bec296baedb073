"""What a packet between outside and an endpoint of another node costs: at the driver (XDP), beside
the two translations that TC makes of it, without the stack between those.

The method is that of packetcost.py, in a network namespace with a route and neighbours, since XDP
asks the kernel for the next hop.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ebpf import maps
from ebpf.compile import compiler
from ebpf.compile.source import Unit
from ebpf.errors import LbError
from ebpf.kernel import testrun
from ebpf.maps import ArrayMap, ProgramArray, array_of, of_kind
from ebpf.programs import load
from lbctl.bench import packetcost
from lbctl.bench.packetcost import ACK, PORT, SYN, TARGET, Bench, Cost, cost_of
from lbctl.bench.records import PacketCost, Record, summary
from lbctl.datapath import clock
from lbctl.lab import namespace

_PEER = "lbctl-xdp"
_LOOPBACK = 1  # whose address, of a test run's device, is zero
_XDP_PASS, _XDP_TX, _XDP_REDIRECT = 2, 3, 4
_LENGTH = 80  # of a frame; its headers and some payload
_UPLINK = "uplink"
_MAC = bytes.fromhex("020000000001")
_LASTS = 3600.0  # seconds that next hops are kept


@dataclass(frozen=True, slots=True)
class Way:
    """One family's conversation: a client outside, the service, a backend on another node, and what
    that sees."""

    client: str
    service: str
    backend: str
    node: str
    prefix: int

    @property
    def name(self) -> str:
        return "IPv6" if ":" in self.node else "IPv4"

    def frame(self, answer: bool, flags: int = ACK) -> bytes:
        """Padded to a size that both families' headers fit into."""
        places = (self.client, self.service, 40000, PORT)
        if answer:
            places = (self.backend, self.node, TARGET, 40000)
        made = packetcost.header(*places, flags)
        return _with_sum(bytes(6) + made[6:]).ljust(_LENGTH, b"\0")

    def other(self) -> bytes:
        """From the same client to somebody who is no service."""
        made = packetcost.header(self.client, self.backend, 40001, 443, ACK)
        return _with_sum(bytes(6) + made[6:]).ljust(_LENGTH, b"\0")

    def leaves(self, answer: bool) -> bytes:
        """As TC sees it where it goes out."""
        places = (self.client, self.backend, 40000, TARGET)
        if answer:
            places = (self.backend, self.client, TARGET, 40000)
        made = packetcost.header(*places, ACK)
        return _with_sum(bytes(6) + made[6:]).ljust(_LENGTH, b"\0")


WAYS = (
    Way("198.51.100.9", packetcost.SERVICE4, packetcost.BACKEND4, "192.0.2.1", 24),
    Way("2001:db8:9::9", packetcost.SERVICE6, packetcost.BACKEND6, "2001:db8:2::1", 64),
)


@dataclass(frozen=True, slots=True)
class Driver:
    """The programs of driver/xdp.c. `arrived` is what its listeners have counted."""

    programs: dict[str, int]
    headers: ArrayMap
    callee: ProgramArray
    arrived: ArrayMap
    rewriting: ArrayMap

    def take(self, callee: int, frame: bytes) -> None:
        """What `xdp_restore` makes of each packet, and calls with it."""
        self.callee.store(0, callee)
        self.headers.records["bytes"][0, : len(frame)] = np.frombuffer(frame, np.uint8)

    def packet(self, callee: int, frame: bytes, repeat: int) -> int:
        """Nanoseconds per run with `callee` behind it."""
        self.take(callee, frame)
        return testrun.run(self.programs["xdp_restore"], frame, repeat).duration_ns


class Costs(msgspec.Struct, frozen=True):
    """By kind of packet, and the record of the peer: IPv4's two directions."""

    packets: list[PacketCost]
    records: list[Record]


def costs(rounds: int, repeat: int, progress: Callable[[str], None]) -> Costs:
    """Both ways of both families. Raises LbError."""
    name = f"lbctl-bench-{os.getpid()}"
    namespace.ip_batch([f"netns add {name}"])
    try:
        return namespace.run_in(name, lambda: _costs(rounds, repeat, progress))
    finally:
        namespace.ip_batch([f"netns delete {name}"], force=True)


def _costs(rounds: int, repeat: int, progress: Callable[[str], None]) -> Costs:
    _build_network()
    packets: list[PacketCost] = []
    above: list[float] = []
    floor = 0.0
    with packetcost.bench() as made, driver() as own:
        _know_devices(made)
        made.array("config").records["flags"] = made.bundle.enums["CONFIG_MASQUERADE_ALL"]
        for way in WAYS:
            _open(made, way)
            for answer, what in ((False, "to another node"), (True, "back from another node")):
                name = f"{what}, {way.name}"
                progress(name)
                measured = [
                    ("TC in and out", _by_tc(made, way, answer, rounds, repeat)),
                    ("XDP", _by_driver(made, own, way.frame(answer), rounds, repeat)),
                ]
                packets += [_packet_cost(f"{name}, {kind}", cost) for kind, cost in measured]
                if way is WAYS[0]:
                    above += measured[1][1].above
                    floor = measured[1][1].floor
            _tell_ends(own, way)
            program = own.programs["xdp_rewrite"]
            least = _run(own, program, way.frame(False), rounds, repeat, _XDP_TX)
            packets.append(_packet_cost(f"only rewritten, {way.name}, XDP", least))
            other = _by_driver(made, own, way.other(), rounds, repeat, _XDP_PASS)
            packets.append(_packet_cost(f"not service, {way.name}, XDP", other))
    nanoseconds = summary(_PEER, 1, "packet_ns", above)
    ratio = round((floor + nanoseconds.p50) / floor, 4) if floor else None
    return Costs(packets, [msgspec.structs.replace(nanoseconds, ratio_to_floor=ratio)])


def _build_network() -> None:
    """In the calling thread's namespace: everything is reached by one device."""
    commands = ["link set lo up", f"link add {_UPLINK} type veth peer name far"]
    commands += [f"link set {_UPLINK} address {_MAC.hex(':')} up", "link set far up"]
    for way in WAYS:
        nodad = " nodad" if ":" in way.node else ""
        commands.append(f"address add {way.node}/{way.prefix} dev {_UPLINK}{nodad}")
        for target in (way.client, way.backend):
            commands.append(f"route add {target} dev {_UPLINK}")
            commands.append(f"neigh add {target} lladdr 02:00:00:00:00:09 dev {_UPLINK}")
    namespace.ip_batch(commands)
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")


def _know_devices(made: Bench) -> None:
    table = made.hash("xdp_devices")
    sends = made.bundle.enums["XDP_DEVICE_SENDS"]
    uplink = socket.if_nametoindex(_UPLINK)
    for index, mac, flags in ((_LOOPBACK, bytes(6), 0), (uplink, _MAC, sends)):
        table.put(np.uint32(index).tobytes(), struct.pack("=6sH", mac, flags))
    config, enums = made.array("config").records, made.bundle.enums
    config["xdp"] = enums["XDP_SENDS_ALWAYS"] | enums["XDP_KEEPS_HOPS"]
    config["fast_until"] = (clock.current_beat() + clock.beats(_LASTS)) % (1 << 32)
    config["fast_epoch"], config["fast_mtu"] = 1, 0xFFFF


def _open(made: Bench, way: Way) -> None:
    """SYN and ACK of a connection, each past both hooks."""
    for flags in (SYN, ACK):
        frame = way.frame(False, flags)
        for entry in ("entry_from_net", "entry_to_net"):
            frame = testrun.run(made.generation.fds[entry], frame).packet


def _by_tc(made: Bench, way: Way, answer: bool, rounds: int, repeat: int) -> Cost:
    """The sum of both hooks' costs."""
    floors, costs = [], []
    frames = (("entry_from_net", way.frame(answer)), ("entry_to_net", way.leaves(answer)))
    for _ in range(rounds):
        floor = cost = 0
        for entry, frame in frames:
            made.load_header(frame[: 54 if way is WAYS[0] else 74])
            floor += made.packet(made.driver["empty"], repeat)
            cost += made.packet(made.generation.fds[entry], repeat)
        floors.append(floor)
        costs.append(cost)
    return cost_of("TC", floors, costs)


def _packet_cost(name: str, cost: Cost) -> PacketCost:
    return PacketCost(name, round(cost.minimum, 1), round(cost.median, 1))


def _by_driver(
    made: Bench,
    driver: Driver,
    frame: bytes,
    rounds: int,
    repeat: int,
    verdict: int = _XDP_REDIRECT,
) -> Cost:
    return _run(driver, made.generation.fds["xdp_uplink"], frame, rounds, repeat, verdict)


def _tell_ends(driver: Driver, way: Way) -> None:
    """What the program that only rewrites makes of a packet to the service."""
    family = socket.AF_INET6 if way.name == "IPv6" else socket.AF_INET
    ends = b"".join(socket.inet_pton(family, address) for address in (way.node, way.backend))
    record = driver.rewriting.records
    record["ends"][0, : len(ends) // 4] = np.frombuffer(ends, np.uint32)
    record["ports"][0] = [socket.htons(port) for port in (40000, TARGET)]
    record["macs"][0] = np.frombuffer(_MAC * 2, np.uint8)


def _run(
    driver: Driver, program: int, frame: bytes, rounds: int, repeat: int, verdict: int
) -> Cost:
    found = testrun.run(program, frame).retval
    if found != verdict:
        raise LbError(f"XDP says {found} of the bench's packets", "This is a fault of the bench.")
    floors, costs = [], []
    for _ in range(rounds):
        floors.append(driver.packet(driver.programs["xdp_empty"], frame, repeat))
        costs.append(driver.packet(program, frame, repeat))
    return cost_of("XDP", floors, costs)


@contextlib.contextmanager
def driver() -> Iterator[Driver]:
    """Loads them; closes them at the end."""
    units = [Unit("xdp", "xdp.c")]
    bundle = compiler.bundle("live", directory=packetcost.DRIVER, units=units)
    counts = {"xdp_arrived": 2}
    own = {name: maps.create(spec, counts.get(name, 1)) for name, spec in bundle.maps.items()}
    fds = {name: table.fd for name, table in own.items()}
    programs = {name: load(program, fds) for name, program in bundle.programs.items()}
    made = Driver(
        programs,
        headers=array_of(own, "xdp_headers"),
        callee=of_kind(ProgramArray, own["xdp_callee"]),
        arrived=array_of(own, "xdp_arrived"),
        rewriting=array_of(own, "xdp_rewriting"),
    )
    try:
        yield made
    finally:
        for fd in programs.values():
            os.close(fd)
        for table in own.values():
            table.close()


def _with_sum(frame: bytes) -> bytes:
    """With the checksum of its IPv4 header, which packetcost.header leaves out."""
    if frame[12:14] != b"\x08\x00":
        return frame
    total = sum(struct.unpack("!10H", frame[14:24] + b"\0\0" + frame[26:34]))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return frame[:24] + struct.pack("!H", ~total & 0xFFFF) + frame[26:]
