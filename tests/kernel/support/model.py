"""What the data path should make of a frame, computed without it, without scapy and from scratch.

Only the standard library and bytes: a parser that knows where the fields are, a rewriter that sums
whole packets anew, and a way to tell which bytes of a frame a translation may touch.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PASS, DROP, REDIRECT = -1, 2, 7
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
CHECKSUM_AT = {TCP: 16, UDP: 6}
HEADER_SIZE = {TCP: 20, UDP: 8, SCTP: 12}

_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_CHAINED = (_HOP, _ROUTING, _DESTINATION)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are: offsets into the frame. `fragment` is (id, offset in bytes, more)."""

    family: int
    network: int
    transport: int
    end: int
    protocol: int
    fragment: tuple[int, int, bool] | None
    extension_headers: int
    routed: bool  # a routing header that is not used up: the address is not the last one

    @property
    def addresses(self) -> tuple[slice, slice]:
        """Slices of the source and the destination."""
        at, size = (self.network + 12, 4) if self.family == 4 else (self.network + 8, 16)
        return slice(at, at + size), slice(at + size, at + 2 * size)

    @property
    def later_fragment(self) -> bool:
        return self.fragment is not None and self.fragment[1] > 0

    @property
    def has_ports(self) -> bool:
        """Whether the transport header is here, whole."""
        return (
            self.protocol in HEADER_SIZE
            and not self.later_fragment
            and self.transport + HEADER_SIZE[self.protocol] <= self.end
        )


class Unreadable(Exception):
    """No IP packet, or one whose IP headers are cut off or contradict themselves."""


def parse(frame: bytes) -> Layout:
    """Raises Unreadable."""
    at = 12
    for _ in range(3):
        kind = _u16(frame, at)
        at += 2
        if kind == _IPV4:
            return _parse4(frame, at)
        if kind == _IPV6:
            return _parse6(frame, at)
        if kind not in _VLANS:
            break
        at += 2
    raise Unreadable(f"ethertype {kind:#x}")


def _parse4(frame: bytes, at: int) -> Layout:
    if len(frame) < at + 20:
        raise Unreadable("IPv4 header cut off")
    size = (frame[at] & 15) * 4
    total = _u16(frame, at + 2)
    if frame[at] >> 4 != 4 or size < 20 or total < size or len(frame) < at + total:
        raise Unreadable("IPv4 header contradicts itself")
    place = _u16(frame, at + 6)
    fragment = None
    if place & 0x3FFF:
        fragment = (_u16(frame, at + 4), (place & 0x1FFF) * 8, bool(place & 0x2000))
    return Layout(4, at, at + size, at + total, frame[at + 9], fragment, 0, False)


def _parse6(frame: bytes, at: int) -> Layout:
    if len(frame) < at + 40:
        raise Unreadable("IPv6 header cut off")
    end = at + 40 + _u16(frame, at + 4)
    if frame[at] >> 4 != 6 or len(frame) < end:
        raise Unreadable("IPv6 header contradicts itself")
    network, protocol, at = at, frame[at + 6], at + 40
    fragment, count, routed = None, 0, False
    while protocol in (*_CHAINED, _FRAGMENT) and not (fragment and fragment[1]):
        if end < at + 8:
            raise Unreadable("extension header cut off")
        count += 1
        if protocol == _FRAGMENT:
            place = _u16(frame, at + 2)
            fragment = (_u32(frame, at + 4), place & 0xFFF8, bool(place & 1))
            size = 8
        else:
            size = (frame[at + 1] + 1) * 8
            routed |= protocol == _ROUTING and frame[at + 3] > 0
        protocol, at = frame[at], at + size
        if end < at:
            raise Unreadable("extension header cut off")
    if fragment and not fragment[1] and not fragment[2]:
        fragment = None  # an atomic fragment is a whole packet
    return Layout(6, network, at, end, protocol, fragment, count, routed)


@dataclass(frozen=True, slots=True)
class Tuple5:
    """A packet's addresses (packed), ports and protocol."""

    src: bytes
    dst: bytes
    sport: int
    dport: int
    protocol: int


def tuple_of(frame: bytes, layout: Layout | None = None) -> Tuple5:
    """Ports are 0 where there are none."""
    layout = layout or parse(frame)
    src, dst = layout.addresses
    sport = dport = 0
    if layout.has_ports:
        sport, dport = _u16(frame, layout.transport), _u16(frame, layout.transport + 2)
    return Tuple5(frame[src], frame[dst], sport, dport, layout.protocol)


def rewrite(
    frame: bytes,
    *,
    src: str | bytes | None = None,
    dst: str | bytes | None = None,
    sport: int | None = None,
    dport: int | None = None,
) -> bytes:
    """The frame with other addresses and ports and with every sum right again.

    Sums are computed anew over the whole packet, but for fragments, of which only a part is at
    hand: there the old sum is corrected. A UDP checksum of 0 over IPv4 stays.
    """
    layout = parse(frame)
    out = bytearray(frame)
    slices = layout.addresses
    for place, address in zip(slices, (src, dst), strict=True):
        if address is not None:
            out[place] = packed(address)
    if layout.has_ports:
        for offset, port in ((0, sport), (2, dport)):
            if port is not None:
                struct.pack_into("!H", out, layout.transport + offset, port)
    if layout.family == 4:
        fix_ipv4_sum(out, layout.network, layout.transport)
    _fix_transport_sum(frame, out, layout)
    return bytes(out)


def fix_ipv4_sum(out: bytearray, start: int, end: int) -> None:
    """Writes the header checksum of the IPv4 header in out[start:end]."""
    out[start + 10 : start + 12] = b"\0\0"
    struct.pack_into("!H", out, start + 10, ones_complement(bytes(out[start:end])))


def crc32c(data: bytes | bytearray) -> int:
    """Castagnoli's, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _fix_transport_sum(before: bytes, out: bytearray, layout: Layout) -> None:
    if layout.protocol == SCTP and layout.has_ports and layout.fragment is None:
        at = layout.transport + 8
        out[at : at + 4] = bytes(4)
        struct.pack_into("<I", out, at, crc32c(out[layout.transport : layout.end]))
        return
    if layout.protocol not in CHECKSUM_AT or not layout.has_ports:
        return
    at = layout.transport + CHECKSUM_AT[layout.protocol]
    old = _u16(out, at)
    if layout.protocol == UDP and layout.family == 4 and old == 0:
        return
    if layout.fragment is not None:
        fields = (*layout.addresses, slice(layout.transport, layout.transport + 4))
        total = ~old & 0xFFFF
        for place in fields:
            total += 0xFFFF * 1000 - _total(before[place]) + _total(bytes(out[place]))
        value = ~_fold(total) & 0xFFFF
    else:
        out[at : at + 2] = b"\0\0"
        segment = bytes(out[layout.transport : layout.end])
        value = ones_complement(_pseudo_header(out, layout, len(segment)) + segment)
    if layout.protocol == UDP and value == 0:
        value = 0xFFFF
    struct.pack_into("!H", out, at, value)


def _pseudo_header(frame: bytes | bytearray, layout: Layout, length: int) -> bytes:
    src, dst = layout.addresses
    return bytes(frame[src]) + bytes(frame[dst]) + struct.pack("!II", length, layout.protocol)


def may_change(frame: bytes, layout: Layout) -> Iterator[slice]:
    """The only bytes a translation may touch: addresses, ports, checksums."""
    yield from layout.addresses
    if layout.family == 4:
        yield slice(layout.network + 10, layout.network + 12)
    if layout.later_fragment:
        return
    if layout.protocol in HEADER_SIZE:
        yield slice(layout.transport, layout.transport + 4)
    if layout.protocol in CHECKSUM_AT:
        at = layout.transport + CHECKSUM_AT[layout.protocol]
        yield slice(at, at + 2)
    if layout.protocol == SCTP:
        yield slice(layout.transport + 8, layout.transport + 12)


def ones_complement(data: bytes) -> int:
    """The internet checksum of data."""
    return ~_fold(_total(data)) & 0xFFFF


def packed(address: str | bytes) -> bytes:
    """Network-order bytes of an address given as text or as such bytes."""
    if isinstance(address, bytes):
        return address
    return socket.inet_pton(family_of(address), address)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def no_hosts_own(address: str) -> bool:
    """May nobody send from there? What the registries of special addresses say (RFC 6890)."""
    found = ipaddress.ip_address(address)
    if found.version == 4:
        nets = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")
    else:
        nets = ("::/128", "::1/128", "::ffff:0:0/96", "ff00::/8")
    return any(found in ipaddress.ip_network(net) for net in nets)


def _total(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _u16(data: bytes | bytearray, at: int) -> int:
    if len(data) < at + 2:
        raise Unreadable("cut off")
    return int.from_bytes(data[at : at + 2], "big")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
