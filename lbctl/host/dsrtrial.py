"""Tries between two nodes whether answers can go straight back: does the network pass the outer
header, and a source that is not the sender's own?

One node answers, the other one asks. It sends a datagram of its own to the service's address as DSR
would: inside an outer header, to the other node. That one answers to whoever is the source inside,
with the service's address as its own source.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from lbctl.errors import LbError
from lbctl.host.settings import Answer

MAGIC: Final = b"lbctl doctor --dsr "
SERVICE_PORT: Final = 9  # discard: of no service that anybody would miss
WAIT: Final = 1.0  # seconds for an answer
TRIES: Final = 3
SMALL, FULL = 100, 1400  # bytes of the packet inside: any way has room for that
_IN_IP = {socket.AF_INET: 4, socket.AF_INET6: socket.IPPROTO_IPV6}
_HEADERS = {socket.AF_INET: 28, socket.AF_INET6: 48}  # IP and UDP
_HDRINCL = 36  # IPV6_HDRINCL of linux/in6.h
_TTL = 64


class Inner(NamedTuple):
    """A UDP datagram inside; addresses are text."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    payload: bytes


def build(inner: Inner) -> bytes:
    """The packet, from its IP header on."""
    family = _family(inner.source)
    source, destination = (socket.inet_pton(family, a) for a in (inner.source, inner.destination))
    length = 8 + len(inner.payload)
    head = struct.pack("!HHH", inner.source_port, inner.destination_port, length)
    pseudo = source + destination + struct.pack("!II", length, socket.IPPROTO_UDP)
    check = _checksum(pseudo + head + b"\0\0" + inner.payload) or 0xFFFF
    udp = head + struct.pack("!H", check) + inner.payload
    if family == socket.AF_INET6:
        return struct.pack("!IHBB", 6 << 28, length, 17, _TTL) + source + destination + udp
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _TTL, 17, 0)
    ip += source + destination
    return ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:] + udp


def parse(packet: bytes) -> Inner | None:
    """The datagram of a packet that `build` may have made; None of any other."""
    if len(packet) < 28 or packet[0] not in (0x45, 0x60):
        return None
    six = packet[0] == 0x60
    size, family = (40, socket.AF_INET6) if six else (20, socket.AF_INET)
    if len(packet) < size + 8 or packet[6 if six else 9] != socket.IPPROTO_UDP:
        return None
    at, width = (8, 16) if six else (12, 4)
    source, destination = (
        socket.inet_ntop(family, packet[start : start + width]) for start in (at, at + width)
    )
    ports = struct.unpack_from("!HH", packet, size)
    payload = packet[size + 8 :]
    return Inner(source, ports[0], destination, ports[1], payload)


def answering(port: int, told: Callable[[str], None], until: float) -> None:
    """Answers who tries, until that time of the monotonic clock. Raises LbError if it cannot."""
    with contextlib.ExitStack() as stack:
        ears = dict(_ears(stack, port))
        while (left := until - time.monotonic()) > 0:
            for ear in select.select(list(ears), [], [], min(left, 1.0))[0]:
                packet, peer = ear.recvfrom(65535)
                inner = parse(packet[ears[ear] :])
                if inner is None or not inner.payload.startswith(MAGIC):
                    continue
                told(f"from {peer[0]}: {inner.source} calls {inner.destination}")
                back = Inner(
                    inner.destination,
                    inner.destination_port,
                    inner.source,
                    inner.source_port,
                    inner.payload,
                )
                _send_raw(back)


def _ears(stack: contextlib.ExitStack, port: int) -> Iterator[tuple[socket.socket, int]]:
    """Sockets, and how many bytes of the outer header each shows."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            udp = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            if family == socket.AF_INET6:
                udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # The programs leave the outer UDP header without checksum.
            udp.bind(("", port))
            raw = stack.enter_context(socket.socket(family, socket.SOCK_RAW, _IN_IP[family]))
        except OSError as error:
            raise LbError(
                f"cannot listen for trials at UDP port {port}: {error.strerror}",
                "Run as root; if a process has the port, stop it or choose --dsr-port.",
            ) from error
        yield udp, 0
        yield raw, 20 if family == socket.AF_INET else 0


def asking(node: str, service: str, port: int) -> list[tuple[str, Answer]]:
    """What of the ways towards that node passes, from this one. Raises LbError if it cannot try."""
    if _family(node) != _family(service):
        raise LbError(
            f"{node} and {service} are of different families",
            "Give addresses of one family; try the other one apart.",
        )
    found = []
    for form, name in (("udp", f"UDP port {port}"), ("ipip", "IP in IP")):
        for size, what in ((SMALL, "small"), (FULL, "large")):
            answered = _ask(node, service, port, form, size)
            found.append((f"DSR: {name}, {what}", _judge(answered, name, node, service)))
    return found


def _judge(answered: bool, name: str, node: str, service: str) -> Answer:
    if answered:
        return Answer(True, f"there and straight back: {node} answers as {service}")
    return Answer(
        False,
        f"no answer from {node} as {service}",
        f"Is `lbctl doctor --dsr` running there, and does it say that it was called? If not, the "
        f"network does not pass {name}; if it does, it drops sources that are not the sender's "
        "own (a cloud's source check, a switch's): allow them, or keep to snat.",
    )


def _ask(node: str, service: str, port: int, form: str, size: int) -> bool:
    family = _family(node)
    token = MAGIC + os.urandom(8).hex().encode()
    with socket.socket(family, socket.SOCK_DGRAM) as ear, _sender(family, form) as sender:
        own = _source_towards(node)
        ear.bind((own, 0))
        payload = token.ljust(size - _HEADERS[family], b".")
        inner = build(Inner(own, ear.getsockname()[1], service, SERVICE_PORT, payload))
        for _ in range(TRIES):
            try:
                sender.sendto(inner, (node, port if form == "udp" else 0))
            except OSError as error:
                raise LbError(f"cannot send to {node}: {error.strerror}") from error
            if _hears(ear, service, payload):
                return True
    return False


def _sender(family: socket.AddressFamily, form: str) -> socket.socket:
    if form == "udp":
        return socket.socket(family, socket.SOCK_DGRAM)
    try:
        return socket.socket(family, socket.SOCK_RAW, _IN_IP[family])
    except OSError as error:
        raise LbError(f"cannot send IP in IP: {error.strerror}", "Run as root.") from error


def _hears(ear: socket.socket, service: str, payload: bytes) -> bool:
    until = time.monotonic() + WAIT
    while (left := until - time.monotonic()) > 0:
        ear.settimeout(left)
        try:
            data, peer = ear.recvfrom(65535)
        except TimeoutError:
            return False
        if data == payload and peer[:2] == (service, SERVICE_PORT):
            return True
    return False


def _send_raw(inner: Inner) -> None:
    """With a source that is not this node's own."""
    family = _family(inner.source)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        if family == socket.AF_INET6:
            raw.setsockopt(socket.IPPROTO_IPV6, _HDRINCL, 1)
        # Nobody there any more is no fault of ours.
        with contextlib.suppress(OSError):
            raw.sendto(build(inner), (inner.destination, 0))


def _source_towards(node: str) -> str:
    """This machine's address on the way there."""
    with socket.socket(_family(node), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((node, 9))
        except OSError as error:
            raise LbError(f"there is no way to {node}: {error.strerror}") from error
        return str(sock.getsockname()[0])


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
