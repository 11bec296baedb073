"""What a packet costs in the kernel: nanoseconds above an empty program, by kind of packet.

The method is BPF_PROG_TEST_RUN with a driver that restores the headers between runs; floor,
yardstick and case take turns, the figures are minimum and median over the rounds. Of many flows the
driver computes the headers, so that no memory is waited for but the programs' own. The caller pins
the CPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from ebpf import flowtable, maps
from ebpf.compile import compiler
from ebpf.compile.source import Unit
from ebpf.kernel import libbpf, testrun
from ebpf.layouts import Bundle
from ebpf.maps import ArrayMap, HashMap, ProgramArray, array_of, of_kind
from ebpf.maps.sizes import Sizes
from ebpf.programs import Generation, load
from lbctl.bench.records import PacketCost, Record, summary
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key, marker_key

DRIVER = Path(__file__).parent / "driver"
CLIENT4, SERVICE4, BACKEND4 = "10.244.1.2", "10.96.0.10", "10.244.2.3"
CLIENT6, SERVICE6, BACKEND6 = "fd00:10:244:1::2", "fd00:10:96::10", "fd00:10:244:2::3"
PORT, TARGET = 80, 8080
FLOWS = 131072
MANY = 65536
IPV6 = b"\x86\xdd"
# By family, of source and of destination: the last byte of the address, and the port.
_CLIENT_AT = {4: ((29, 33), (34, 36)), 6: ((37, 53), (54, 56))}
_PORTS = 32768


def mapped(address: str) -> bytes:
    """16 bytes, IPv4 as ::ffff:a.b.c.d."""
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return b"\0" * 10 + b"\xff\xff" + socket.inet_pton(socket.AF_INET, address)


def header(src: str, dst: str, sport: int, dport: int, flags: int, proto: int = 6) -> bytes:
    """Ethernet, IP and TCP or UDP header without payload; transport checksums left zero."""
    transport = (
        struct.pack("!HHIIBBHHH", sport, dport, 1, 1, 5 << 4, flags, 8192, 0, 0)
        if proto == 6
        else struct.pack("!HHHH", sport, dport, 20, 0) + b"x" * 12
    )
    if ":" in src:
        ip = struct.pack("!IHBB", 6 << 28, len(transport), proto, 64)
        ip += socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
        return b"\x02" * 12 + IPV6 + ip + transport
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(transport), 1, 0, 64, proto, 0)
    ip += socket.inet_pton(socket.AF_INET, src) + socket.inet_pton(socket.AF_INET, dst)
    return b"\x02" * 12 + b"\x08\x00" + ip + transport


@dataclass
class Bench:
    """The programs on maps of their own, with one service of one backend per family."""

    bundle: Bundle
    tables: dict[str, maps.Map]
    generation: Generation
    driver: dict[str, int]
    headers: ArrayMap
    control: ArrayMap
    callee: ProgramArray
    fillings: HashMap
    close: list[Callable[[], None]] = field(default_factory=list)

    def hash(self, name: str) -> HashMap:
        return of_kind(HashMap, self.tables[name])

    def array(self, name: str) -> ArrayMap:
        return array_of(self.tables, name)

    def load_header(self, frame: bytes, clients: int = 1, answers: bool = False) -> None:
        """Sets what to run through: one frame, or as many as `clients`, a power of two, each with
        another `client` as the source, or as the destination of answers."""
        family = 6 if frame[12:14] == IPV6 else 4
        address_at, port_at = (at[answers] for at in _CLIENT_AT[family])
        self.headers.records["bytes"][0, : len(frame)] = np.frombuffer(frame, dtype=np.uint8)
        self.control.records[0] = (0, clients - 1, len(frame), address_at, port_at)

    def packet(self, callee: int, repeat: int) -> int:
        """Nanoseconds per run of the driver with `callee` behind it."""
        self.callee.store(0, callee)
        # The kernel reads the ethertype once, from the frame it is given.
        frame = self.headers.records["bytes"][0, : int(self.control.records["length"][0])]
        return testrun.run(self.driver["restore"], frame.tobytes(), repeat).duration_ns

    def one(self, name: str, frame: bytes) -> int:
        """Sends one frame through an entry program; its verdict."""
        return testrun.run(self.generation.fds[name], frame).retval

    def clear_flows(self) -> None:
        for name, table in self.tables.items():
            if name.startswith(("control", "cells", "states")) and isinstance(table, ArrayMap):
                table.records[:] = np.zeros(1, table.records.dtype)


def _populate(bench: Bench) -> None:
    """Service id 1 + family, one backend each."""
    enums = bench.bundle.enums
    frontends = Frontends(bench.array("frontends"))
    cluster_ip, address = enums["FRONTEND_CLUSTER_IP"], enums["FRONTEND_ADDRESS"]
    for index, (service, backend) in enumerate(((SERVICE4, BACKEND4), (SERVICE6, BACKEND6)), 1):
        keys = (frontend_key(mapped(service), PORT, proto) for proto in (6, 17))
        frontends.put([(key, index, cluster_ip) for key in keys])
        frontends.put([(marker_key(mapped(service)), 0, address)])
        record = bench.array("backends").records[index : index + 1]
        record["addr"]["w"] = np.frombuffer(mapped(backend), dtype=np.uint32)
        record["port"] = socket.htons(TARGET)
        record["flags"] = enums["BACKEND_SERVING"]
        bench.array("slots").records["backend"][index] = index
        word = index | 1 << enums["REGION_LENGTH_SHIFT"]
        bench.array("services").store_word(index, "cluster", word)
        frontends.hold(record)
    flowtable.prepare(bench.tables, enums)
    config = bench.array("config").records
    config["established_timeout"] = config["syn_timeout"] = 1 << 20
    config["closing_timeout"] = config["datagram_timeout"] = 1 << 20
    config["datagram_stream_timeout"] = 1 << 20
    config["port_min"], config["port_max"] = 61000, 61999
    config["node_port_max"] = 62999


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Loads everything; closes it at the end."""
    bundle = compiler.bundle("live")
    driver = compiler.bundle("live", directory=DRIVER, units=[Unit("driver", "driver.c")])
    sizes = Sizes(services=256, endpoints=256, flows=FLOWS, fast_path=True).max_entries(bundle)
    tables = {name: maps.create(bundle.maps[name], entries) for name, entries in sizes.items()}
    counts = {
        "headers": 1,
        "control": 1,
        "callee": 3,
        "yardsticks": 1,
        "fillings": 2 * FLOWS,
    }
    own = {name: maps.create(spec, counts[name]) for name, spec in driver.maps.items()}
    fds = {name: table.fd for name, table in own.items()}
    programs = {name: load(program, fds) for name, program in driver.programs.items()}
    generation = Generation.load(bundle, {name: table.fd for name, table in tables.items()})
    headers, control = array_of(own, "headers"), array_of(own, "control")
    callee, fillings = of_kind(ProgramArray, own["callee"]), of_kind(HashMap, own["fillings"])
    of_kind(HashMap, own["yardsticks"]).put(bytes(16), bytes(8))
    callee.store(1, programs["second"])
    callee.store(2, programs["lookup"])
    made = Bench(bundle, tables, generation, programs, headers, control, callee, fillings)
    _populate(made)
    try:
        yield made
    finally:
        generation.close()
        for fd in programs.values():
            os.close(fd)
        for table in (*tables.values(), *own.values()):
            table.close()


@dataclass(frozen=True)
class Case:
    """A kind of packet: `prepare` puts flows and headers in place, `entry` is the hook."""

    name: str
    entry: str
    prepare: Callable[[Bench], None]
    repeat: int = 1_000_000


ACK, SYN = 0x10, 0x02


def client(first: str, number: int) -> tuple[str, int]:
    """Address and port of a client: the driver makes the same of the number."""
    return f"{first[:-1]}{int(first[-1]) + number // _PORTS}", 20000 + number % _PORTS


def _clients(first: str, count: int) -> list[tuple[str, int]]:
    """All of them, in an order without locality."""
    return [client(first, int(n)) for n in np.random.default_rng(7).permutation(count)]


def _open(bench: Bench, client: tuple[str, int], service: str, flags: int = ACK) -> None:
    """SYN and ACK of a connection, so that its flow is established."""
    bench.one("entry_from_pod", header(*_pair(client, service), SYN))
    bench.one("entry_from_pod", header(*_pair(client, service), flags))


def _pair(client: tuple[str, int], service: str) -> tuple[str, str, int, int]:
    return client[0], service, client[1], PORT


def _established(service: str, first: str, count: int) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        for one in _clients(first, count):
            _open(bench, one, service)
        bench.load_header(header(*_pair(client(first, 0), service), ACK), count)

    return prepare


def _replies(service: str, first: str, backend: str, count: int) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        for one in _clients(first, count):
            _open(bench, one, service)
        address, port = client(first, 0)
        frame = header(backend, address, TARGET, port, ACK)
        bench.load_header(frame, count, answers=True)

    return prepare


def _other(src: str, dst: str) -> Callable[[Bench], None]:
    return lambda bench: bench.load_header(header(src, dst, 40000, 443, ACK))


def _new(service: str, first: str) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        bench.clear_flows()
        bench.load_header(header(*_pair(client(first, 0), service), SYN), MANY)

    return prepare


CASES = (
    Case("not service, IPv4", "entry_from_pod", _other(CLIENT4, "192.0.2.9")),
    Case("not service, IPv6", "entry_from_pod", _other(CLIENT6, "2001:db8::9")),
    Case("not service, to the pod", "entry_to_pod", _other("192.0.2.9", CLIENT4)),
    Case("established, IPv4", "entry_from_pod", _established(SERVICE4, CLIENT4, 1)),
    Case("established reply, IPv4", "entry_to_pod", _replies(SERVICE4, CLIENT4, BACKEND4, 1)),
    Case("established, IPv6", "entry_from_pod", _established(SERVICE6, CLIENT6, 1)),
    Case("established reply, IPv6", "entry_to_pod", _replies(SERVICE6, CLIENT6, BACKEND6, 1)),
    Case("64k flows, IPv4", "entry_from_pod", _established(SERVICE4, CLIENT4, MANY)),
    Case("64k flows reply, IPv4", "entry_to_pod", _replies(SERVICE4, CLIENT4, BACKEND4, MANY)),
    Case("64k flows, IPv6", "entry_from_pod", _established(SERVICE6, CLIENT6, MANY)),
    Case("new flow, IPv4", "entry_from_pod", _new(SERVICE4, CLIENT4), 60000),
    Case("new flow, IPv6", "entry_from_pod", _new(SERVICE6, CLIENT6), 60000),
)


@dataclass(frozen=True)
class Cost:
    """Nanoseconds above the floor (an empty program behind the driver), over the rounds."""

    name: str
    floor: float
    minimum: float
    median: float
    above: tuple[float, ...]  # each round's, above the floor of the same round


def measure(bench: Bench, case: Case, rounds: int, repeat: int | None = None) -> Cost:
    """Floor and case in turn, `rounds` times."""
    repeat = repeat or case.repeat
    case.prepare(bench)
    floors, costs = [], []
    for turn in range(rounds):
        if turn and is_new_flow(case):
            case.prepare(bench)
        floors.append(bench.packet(bench.driver["empty"], repeat))
        costs.append(bench.packet(bench.generation.fds[case.entry], repeat))
    return cost_of(case.name, floors, costs)


def is_new_flow(case: Case) -> bool:
    return case.name.startswith("new flow")


def yardstick(bench: Bench, case: Case, rounds: int, repeat: int) -> Cost:
    """What the inevitable of such a case costs on this machine: of a new flow two new entries in a
    hash map as large as the flow table, of other packets two tail calls and a lookup of a hot key.
    """
    bench.load_header(header(CLIENT4, SERVICE4, 40000, PORT, ACK))
    name = "insert" if is_new_flow(case) else "first"
    floors, costs = [], []
    for _ in range(rounds):
        bench.fillings.delete_many(bench.fillings.read_all()[0])
        floors.append(bench.packet(bench.driver["empty"], repeat))
        costs.append(bench.packet(bench.driver[name], repeat))
    return cost_of(name, floors, costs)


def cost_of(name: str, floors: list[int], costs: list[int]) -> Cost:
    """Of rounds in which floor and case took turns."""
    floor = statistics.median(floors)
    return Cost(
        name,
        floor,
        min(costs) - min(floors),
        statistics.median(costs) - floor,
        tuple(case - bare for case, bare in zip(costs, floors, strict=True)),
    )


class Costs(msgspec.Struct, frozen=True):
    """All kinds of packet, in ns; per program its static and verified instructions; the records."""

    costs: list[PacketCost]
    instructions: dict[str, tuple[int, int]]
    records: list[Record]


# What the records are about: the two directions of an established IPv4 TCP connection.
HEADLINES = ("established, IPv4", "established reply, IPv4")
HEADLINE_PROGRAMS = ("entry_from_pod", "from_pod4", "entry_to_pod", "to_pod4")


def all_costs(rounds: int, repeat: int, progress: Callable[[str], None]) -> Costs:
    """Measures every case. LbError if the programs do not compile or load."""
    costs: list[PacketCost] = []
    above: list[float] = []
    floor = 0.0
    with bench() as made:
        for case in CASES:
            progress(case.name)
            few = case.repeat < repeat  # new flows: only as many as the tables hold
            cost = measure(made, case, min(rounds, 5) if few else rounds, min(case.repeat, repeat))
            made.clear_flows()
            costs.append(PacketCost(case.name, round(cost.minimum, 1), round(cost.median, 1)))
            if case.name in HEADLINES:
                above += cost.above
                floor = cost.floor
        programs = {**made.generation.fds, **made.generation.tails}
        instructions = {
            name: (len(made.bundle.programs[name].insns) // 8, libbpf.verified(fd))
            for name, fd in programs.items()
        }
    total = sum(instructions[name][0] for name in HEADLINE_PROGRAMS if name in instructions)
    nanoseconds = summary("lbctl-tc", 1, "packet_ns", above)
    ratio = round((floor + nanoseconds.p50) / floor, 4) if floor else None
    return Costs(
        costs,
        instructions,
        [
            msgspec.structs.replace(nanoseconds, ratio_to_floor=ratio),
            summary("lbctl-tc", 1, "packet_instructions", [total]),
        ],
    )
