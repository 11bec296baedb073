"""Packets per second through a node that forwards a service's packets to another node and back, on
one CPU, per way of doing it.

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
_CLIENT, _NODE, _GATEWAY = "198.51.100.9", "192.0.2.1", "192.0.2.9"
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


class Rates(msgspec.Struct, frozen=True):
    """`references` are packets per second of what is no peer; `missing` says why a peer is."""

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
    references = {name: float(np.median(found[name])) for name in (ALONE, REWRITTEN)}
    return Rates(records, references, missing)


@dataclass(frozen=True, slots=True)
class Node:
    """One peer's, with a connection through it. `program` is what its drivers run."""

    peer: str
    name: str
    program: int
    request: bytes
    reply: bytes

    def rate(self, driver: Driver, frames: int) -> float:
        """Packets per second of both directions together."""
        ways = ((_CLIENTS, self.request, _BACKENDS), (_BACKENDS, self.reply, _CLIENTS))
        took = 0
        for came, frame, left in ways:
            took += _timed(self.name, driver, self.program, frame, came, left, frames)
        return len(ways) * 1e9 / took


def _turn(nodes: Sequence[Node], driver: Driver, frames: int) -> Iterator[tuple[str, float]]:
    for node in nodes:
        yield node.peer, node.rate(driver, frames)
    frame, name = nodes[0].request, nodes[0].name
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
        yield _connect(peer, name, driver, program)


def _build(far: str) -> None:
    commands = ["link set lo up"]
    for device, mac in _MACS.items():
        commands.append(f"link add {device} type veth peer name {device} netns {far}")
        commands.append(f"link set {device} address {mac.hex(':')} addrgenmode none up")
    commands += [
        f"address add 198.51.100.1/24 dev {_CLIENTS}",
        f"address add {_NODE}/24 dev {_BACKENDS}",
        f"neigh add {_CLIENT} lladdr {_HOPS[_CLIENTS].hex(':')} dev {_CLIENTS}",
        f"neigh add {_GATEWAY} lladdr {_HOPS[_BACKENDS].hex(':')} dev {_BACKENDS}",
        f"route add default via {_GATEWAY} dev {_BACKENDS}",
    ]
    namespace.ip_batch(commands)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
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


def _connect(peer: str, name: str, driver: Driver, program: int) -> Node:
    """Opens one through the stack, and has its packets in both directions."""
    client = (_CLIENT, _CLIENT_PORT)
    service, backend = (_DATA.address(0), PORT), (_DATA.backends(0)[0], TARGET_PORT)
    if peer == FLOOR:
        service = backend
    elif peer.startswith("lbctl"):
        service = (packetcost.SERVICE4, packetcost.PORT)
        backend = (packetcost.BACKEND4, packetcost.TARGET)
    up = driver.programs["xdp_empty"]

    def pass_through(frame: bytes, came: str, left: str) -> bytes:
        _timed(name, driver, up, frame, came, left, 1)
        return bytes(driver.arrived.records["first"][_ENDS[left]])

    syn = _frame(_CLIENTS, client, service, _SYN, 1, 0)
    seen = pass_through(syn, _CLIENTS, _BACKENDS)
    (port,) = struct.unpack_from("!H", seen, 34)
    node = (socket.inet_ntoa(seen[26:30]), port)
    if (socket.inet_ntoa(seen[30:34]), int.from_bytes(seen[36:38])) != backend:
        raise LbError(f"a packet to {peer}'s service went elsewhere")
    pass_through(_frame(_BACKENDS, backend, node, _SYN_ACK, 1, 2), _BACKENDS, _CLIENTS)
    request = _frame(_CLIENTS, client, service, _ACK, 2, 2)
    reply = _frame(_BACKENDS, backend, node, _ACK, 2, 2)
    pass_through(request, _CLIENTS, _BACKENDS)
    back = pass_through(reply, _BACKENDS, _CLIENTS)
    if (socket.inet_ntoa(back[26:30]), int.from_bytes(back[34:36])) != service:
        raise LbError(f"an answer through {peer} is not the service's")
    return Node(peer, name, program, request, reply)


End = tuple[str, int]


def _frame(device: str, src: End, dst: End, flags: int, seq: int, ack: int) -> bytes:
    """A TCP packet without payload, as it comes in by a device, padded."""
    addresses = socket.inet_aton(src[0]) + socket.inet_aton(dst[0])
    tcp = struct.pack("!HHIIBBHHH", src[1], dst[1], seq, ack, 5 << 4, flags, 8192, 0, 0)
    check = _sum(addresses + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", _sum(ip)) + ip[12:]
    return (_MACS[device] + _HOPS[device] + b"\x08\x00" + ip + tcp).ljust(_LENGTH, b"\0")


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
