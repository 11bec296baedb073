"""Packets per second through a node that forwards a service's packets to another node and back, on
one CPU, per way of doing it. In IPv4, and of what is no set of rules in IPv6 too.

Frames are made by live-frame test runs: the kernel lets the node's device receive them, and does
with each what the device's XDP program says. For XDP that is our own program; for all others one
that hands them up, so that the stack, netfilter and TC have them as from any driver. Behind the
node's devices, programs count what arrives, and drop it. All of a turn is on one CPU, device queues
included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ebpf.errors import LbError
from ebpf.kernel import syscall, testrun
from lbctl.bench import drivercost, iptables_rules, nftables_rules, packetcost
from lbctl.bench.dataset import PORT, TARGET_PORT, Dataset
from lbctl.bench.drivercost import Driver
from lbctl.bench.packetcost import Bench
from lbctl.bench.records import Record, summary
from lbctl.datapath import clock
from lbctl.lab import namespace

PEERS = (
    "none", "iptables-nft", "iptables-legacy", "nftables", "lbctl-tc", "lbctl-fast", "lbctl-xdp",
)  # fmt: skip
FLOOR = "none"
ALONE = "frames made and dropped"
REWRITTEN = "rewritten and sent back"

_DATA = Dataset(1, 1)
_CLIENT_PORT = 40000
_CLIENTS, _BACKENDS = "clients", "backends"  # the node's devices
_MACS = {_CLIENTS: bytes.fromhex("020000000001"), _BACKENDS: bytes.fromhex("020000000002")}
_HOPS = {_CLIENTS: bytes.fromhex("020000000009"), _BACKENDS: bytes.fromhex("02000000000a")}
_ENDS = {_CLIENTS: 0, _BACKENDS: 1}  # in xdp_arrived
_LENGTH = 80  # of a frame: its headers, and padding
_SYN, _SYN_ACK, _ACK = 0x02, 0x12, 0x10
_ARRIVES = 5.0  # seconds in which what was sent has arrived
_LASTS = 3600.0
_CHECKSUMS = Path("/proc/sys/net/netfilter/nf_conntrack_checksum")
_RULES = {
    "iptables-nft": (["iptables-nft-restore", "--noflush"], iptables_rules.full),
    "iptables-legacy": (["iptables-legacy-restore", "--noflush"], iptables_rules.full),
    "nftables": (["nft", "-f", "-"], nftables_rules.full),
}


@dataclass(frozen=True, slots=True)
class Family:
    """A client, what it calls, and the node between: its addresses there, and its next hop to all
    but the client."""

    name: str
    client: str
    service: str
    backend: str
    addresses: dict[str, str]
    gateway: str
    everything: str


_IPV4 = Family(
    "IPv4", "198.51.100.9", packetcost.SERVICE4, packetcost.BACKEND4,
    {_CLIENTS: "198.51.100.1/24", _BACKENDS: "192.0.2.1/24"}, "192.0.2.9", "0.0.0.0/0",
)  # fmt: skip
_IPV6 = Family(
    "IPv6", "2001:db8:9::9", packetcost.SERVICE6, packetcost.BACKEND6,
    {_CLIENTS: "2001:db8:9::1/64", _BACKENDS: "2001:db8:2::1/64"}, "2001:db8:2::9", "::/0",
)  # fmt: skip


class Rates(msgspec.Struct, frozen=True):
    """`references` are packets per second of what is no peer, and of peers in IPv6; `missing` says
    why a peer is."""

    records: list[Record]
    references: dict[str, float]
    missing: dict[str, str]


def rates(peers: Sequence[str], rounds: int, frames: int, progress: Callable[[str], None]) -> Rates:
    """In turns, on the CPU that the caller has kept. Raises LbError."""
    missing: dict[str, str] = {}
    with ExitStack() as undo:
        driver = undo.enter_context(drivercost.driver())
        nodes = []
        for peer in dict.fromkeys((FLOOR, *(p for p in PEERS if p in peers))):
            progress(f"preparing {peer}")
            try:
                nodes.append(undo.enter_context(_node(peer, driver)))
            except LbError as error:
                missing[peer] = error.message
        found: dict[str, list[float]] = {}
        for turn in range(rounds):
            progress(f"turn {turn + 1} of {rounds}")
            for name, rate in _turn(nodes, driver, frames):
                found.setdefault(name, []).append(rate)
    floor = np.array(found[FLOOR])
    records = []
    for peer in (node.peer for node in nodes):
        ratio = round(float(np.median(np.array(found[peer]) / floor)), 4)
        made = summary(peer, 1, "packet_rate", found[peer])
        records.append(msgspec.structs.replace(made, ratio_to_floor=ratio))
    peers = [node.peer for node in nodes]
    references = {n: float(np.median(rate)) for n, rate in found.items() if n not in peers}
    return Rates(records, references, missing)


@dataclass(frozen=True, slots=True)
class Node:
    """One peer's, with a connection through it: a packet each way, by what these are called.
    `program` is what its drivers run."""

    peer: str
    name: str
    program: int
    packets: dict[str, tuple[bytes, bytes]]

    def rate(self, packets: tuple[bytes, bytes], driver: Driver, frames: int) -> float:
        """Packets per second of both directions together."""
        request, reply = packets
        ways = ((_CLIENTS, request, _BACKENDS), (_BACKENDS, reply, _CLIENTS))
        took = 0
        for came, frame, left in ways:
            took += _timed(self.name, driver, self.program, frame, came, left, frames)
        return len(ways) * 1e9 / took


def _turn(nodes: Sequence[Node], driver: Driver, frames: int) -> Iterator[tuple[str, float]]:
    for node in nodes:
        for what, packets in node.packets.items():
            yield what, node.rate(packets, driver, frames)
    frame, name = nodes[0].packets[FLOOR][0], nodes[0].name
    for what, program, arrives in ((ALONE, "xdp_drop", ""), (REWRITTEN, "xdp_rewrite", _CLIENTS)):
        callee = driver.programs[program]
        yield what, 1e9 / _timed(name, driver, callee, frame, _CLIENTS, arrives, frames)


def _timed(
    name: str, driver: Driver, callee: int, frame: bytes, came: str, left: str, frames: int
) -> int:
    """Nanoseconds per frame, of so many that come in by one device and leave by another. Raises
    LbError if any is lost."""
    arrived = driver.arrived.records
    arrived["frames"] = 0
    driver.take(callee, frame)

    def send() -> int:
        index, program = socket.if_nametoindex(came), driver.programs["xdp_restore"]
        return testrun.send_live(program, frame, index, frames)

    took = namespace.run_in(name, send)
    until = time.monotonic() + _ARRIVES
    while left and (count := int(arrived["frames"][_ENDS[left]])) != frames:
        if time.monotonic() > until:
            raise LbError(f"of {frames} frames {count} arrived", "This is a fault of the bench.")
        time.sleep(0.001)
    return took


# Making nodes


@contextlib.contextmanager
def _node(peer: str, driver: Driver) -> Iterator[Node]:
    name = f"lbctl-forwarding-{os.getpid()}-{peer}"
    far = f"{name}-far"
    with ExitStack() as undo:
        for made in (name, far):
            namespace.ip_batch([f"netns add {made}"])
            undo.callback(namespace.ip_batch, [f"netns delete {made}"], force=True)
        namespace.run_in(name, lambda: _build(far))
        namespace.run_in(far, lambda: _listen(driver, undo))
        program = namespace.run_in(name, lambda: _prepare(peer, driver, undo))
        packets = {peer: _connect(peer, name, driver, program, _IPV4)}
        if peer not in _RULES:
            packets[f"{peer}, IPv6"] = _connect(peer, name, driver, program, _IPV6)
        yield Node(peer, name, program, packets)


def _build(far: str) -> None:
    commands = ["link set lo up"]
    for device, mac in _MACS.items():
        commands.append(f"link add {device} type veth peer name {device} netns {far}")
        commands.append(f"link set {device} address {mac.hex(':')} addrgenmode none up")
    for family in (_IPV4, _IPV6):
        for device, address in family.addresses.items():
            nodad = " nodad" if family is _IPV6 else ""
            commands.append(f"address add {address} dev {device}{nodad}")
        for device, hop in ((_CLIENTS, family.client), (_BACKENDS, family.gateway)):
            commands.append(f"neigh add {hop} lladdr {_HOPS[device].hex(':')} dev {device}")
        commands.append(f"route add {family.everything} via {family.gateway} dev {_BACKENDS}")
    namespace.ip_batch(commands)
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", path).write_text("1")
    for device in ("all", _CLIENTS, _BACKENDS):
        Path("/proc/sys/net/ipv4/conf", device, "rp_filter").write_text("0")


def _listen(driver: Driver, undo: ExitStack) -> None:
    namespace.ip_batch([f"link set {device} addrgenmode none up" for device in _MACS])
    for device, program in ((_CLIENTS, "xdp_client"), (_BACKENDS, "xdp_backend")):
        _attach(driver.programs[program], device, undo)


def _attach(program: int, device: str, undo: ExitStack) -> None:
    undo.callback(os.close, syscall.xdp_link(program, socket.if_nametoindex(device)))


def _prepare(peer: str, driver: Driver, undo: ExitStack) -> int:
    """Its rules or programs; returns what its drivers run."""
    for device in _MACS:  # they receive frames only if they have a program
        _attach(driver.programs["xdp_empty"], device, undo)
    if peer in _RULES:
        _load_rules(*_RULES[peer])
    elif peer.startswith("lbctl"):
        made = undo.enter_context(packetcost.bench())
        _attach_ours(made, undo)
        _tell(made, peer)
        if peer == "lbctl-xdp":
            return made.generation.fds["xdp_uplink"]
    return driver.programs["xdp_empty"]


def _load_rules(argv: Sequence[str], text: Callable[[Dataset], str]) -> None:
    if shutil.which(argv[0]) is None:
        raise LbError(f"{argv[0]} is not installed")
    _CHECKSUMS.write_text("0")  # devices verify them, which these are not
    done = subprocess.run(
        argv, input=text(_DATA), capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise LbError(f"{argv[0]}: {done.stderr.strip()[:200] or done.returncode}")


def _attach_ours(made: Bench, undo: ExitStack) -> None:
    for device in _MACS:
        for direction, program in (("ingress", "entry_from_net"), ("egress", "entry_to_net")):
            index = socket.if_nametoindex(device)
            link = syscall.tcx_link(made.generation.fds[program], index, direction, "last")
            undo.callback(os.close, link)


def _tell(made: Bench, peer: str) -> None:
    """What an agent would."""
    enums, config = made.bundle.enums, made.array("config").records
    config["flags"] = enums["CONFIG_MASQUERADE_ALL"]
    config["fast_until"] = (clock.current_beat() + clock.beats(_LASTS)) % (1 << 32)
    config["fast_epoch"], config["fast_mtu"] = 1, 0xFFFF
    config["fast_open"] = peer == "lbctl-fast"
    if peer == "lbctl-xdp":
        config["xdp"] = enums["XDP_SENDS_ON"] | enums["XDP_KEEPS_HOPS"]
    free = enums["FAST_FROM"] | enums["FAST_NEIGH"] | enums["FAST_LEAVE"]
    for device, mac in _MACS.items():
        index = np.uint32(socket.if_nametoindex(device)).tobytes()
        made.hash("fast_devices").put(index, np.uint32(free).tobytes())
        record = struct.pack("=6sH", mac, enums["XDP_DEVICE_SENDS"])
        made.hash("xdp_devices").put(index, record)


# A connection


End = tuple[str, int]


def _connect(
    peer: str, name: str, driver: Driver, program: int, family: Family
) -> tuple[bytes, bytes]:
    """Opens one through the stack, and has its packets in both directions. Returns a request and
    an answer."""
    client = (family.client, _CLIENT_PORT)
    service, backend = (_DATA.address(0), PORT), (_DATA.backends(0)[0], TARGET_PORT)
    if peer not in _RULES:
        service, backend = (family.service, packetcost.PORT), (family.backend, packetcost.TARGET)
    if peer == FLOOR:
        service = backend
    up = driver.programs["xdp_empty"]

    def pass_through(frame: bytes, came: str, left: str) -> tuple[End, End]:
        _timed(name, driver, up, frame, came, left, 1)
        return _ends(bytes(driver.arrived.records["first"][_ENDS[left]]))

    syn = _frame(_CLIENTS, client, service, _SYN, 1, 0)
    node, called = pass_through(syn, _CLIENTS, _BACKENDS)
    if called != backend:
        raise LbError(f"a packet to {peer}'s service went elsewhere")
    pass_through(_frame(_BACKENDS, backend, node, _SYN_ACK, 1, 2), _BACKENDS, _CLIENTS)
    request = _frame(_CLIENTS, client, service, _ACK, 2, 2)
    reply = _frame(_BACKENDS, backend, node, _ACK, 2, 2)
    pass_through(request, _CLIENTS, _BACKENDS)
    if pass_through(reply, _BACKENDS, _CLIENTS)[0] != service:
        raise LbError(f"an answer through {peer} is not the service's")
    return request, reply


def _ends(frame: bytes) -> tuple[End, End]:
    """Source and destination."""
    family, at, size = (
        (socket.AF_INET6, 22, 16) if frame[12:14] == packetcost.IPV6 else (socket.AF_INET, 26, 4)
    )
    ports = struct.unpack_from("!HH", frame, at + 2 * size)
    places = (frame[at : at + size], frame[at + size :][:size])
    src, dst = (socket.inet_ntop(family, place) for place in places)
    return (src, ports[0]), (dst, ports[1])


def _frame(device: str, src: End, dst: End, flags: int, seq: int, ack: int) -> bytes:
    """A TCP packet without payload, as it comes in by a device, padded."""
    six = ":" in src[0]
    family = socket.AF_INET6 if six else socket.AF_INET
    addresses = socket.inet_pton(family, src[0]) + socket.inet_pton(family, dst[0])
    tcp = struct.pack("!HHIIBBHHH", src[1], dst[1], seq, ack, 5 << 4, flags, 8192, 0, 0)
    check = _sum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    if six:
        ip = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + addresses
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + addresses
        ip = ip[:10] + struct.pack("!H", _sum(ip)) + ip[12:]
    link = _MACS[device] + _HOPS[device] + (packetcost.IPV6 if six else b"\x08\x00")
    return (link + ip + tcp).ljust(_LENGTH, b"\0")


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
