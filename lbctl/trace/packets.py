"""Ethernet frames that begin a connection: a TCP SYN, a UDP datagram, an SCTP INIT."""

from __future__ import annotations

import struct

import msgspec

from lbctl.addresses import IPV4, IPV6, family_of
from lbctl.model.records import Protocol

# From a locally administered address to that of a test run's device, the loopback: frames for
# another machine are left alone.
_ETHERNET = bytes(6) + bytes.fromhex("02000000000a")
_ETHERTYPES = {IPV4: 0x0800, IPV6: 0x86DD}
_LINK_LENGTH = 14
_HOP_LIMIT = 64
_DONT_FRAGMENT = 0x4000
_PAYLOAD = b"lbctl trace\0"

_SYN = 0x02
_WINDOW = 64240
_MAXIMUM_SEGMENT = bytes((2, 4)) + (1460).to_bytes(2, "big")

_SCTP_INIT = 1
_SCTP_TAG = 0x6C62637A

# (offset of source, of destination, of the transport header, bytes of an address) in the frame.
_OFFSETS = {IPV4: (26, 30, 34, 4), IPV6: (22, 38, 54, 16)}
_MAPPED = bytes(10) + b"\xff\xff"


class Ends(msgspec.Struct, frozen=True):
    """Whom a frame is from and to; addresses are 16 bytes."""

    source: bytes
    source_port: int
    destination: bytes
    port: int


def frame(ends: Ends, protocol: Protocol) -> bytes:
    """An Ethernet frame with the first packet of a connection, all checksums filled in."""
    family = family_of(ends.destination)
    width = _OFFSETS[family][3]
    source, destination = ends.source[-width:], ends.destination[-width:]
    segment = _segment(ends, protocol, source + destination)
    link = _ETHERNET + _ETHERTYPES[family].to_bytes(2, "big")
    header = _ipv4 if family == IPV4 else _ipv6
    return link + header(source, destination, protocol, len(segment)) + segment


def read_ends(packet: bytes, family: int) -> Ends:
    """The addresses and ports of a frame that was made by `frame`, whatever became of them."""
    source, destination, ports, width = _OFFSETS[family]
    prefix = _MAPPED if family == IPV4 else b""
    source_port, port = struct.unpack_from("!HH", packet, ports)
    return Ends(
        prefix + packet[source : source + width],
        source_port,
        prefix + packet[destination : destination + width],
        port,
    )


def _ipv4(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + length,
        1,
        _DONT_FRAGMENT,
        _HOP_LIMIT,
        protocol,
        0,
        source,
        destination,
    )
    return _with_sum(header, 10, checksum(header))


def _ipv6(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, length, protocol, _HOP_LIMIT, source, destination)


def _segment(ends: Ends, protocol: Protocol, addresses: bytes) -> bytes:
    """The transport header and what it carries; `addresses` are those of the IP header."""
    ports = struct.pack("!HH", ends.source_port, ends.port)
    if protocol is Protocol.SCTP:
        return _sctp_init(ports)
    if protocol is Protocol.TCP:
        text = ports + struct.pack("!IIBBHHH", 1, 0, 6 << 4, _SYN, _WINDOW, 0, 0) + _MAXIMUM_SEGMENT
        place = 16
    else:
        text = ports + struct.pack("!HH", 8 + len(_PAYLOAD), 0) + _PAYLOAD
        place = 6
    # The pseudo-headers of both families sum to the same: addresses, protocol, length.
    total = checksum(addresses + struct.pack("!HH", protocol, len(text)) + text)
    # RFC 768: a UDP checksum that comes out as zero is sent as all ones.
    return _with_sum(text, place, total or (0xFFFF if protocol is Protocol.UDP else 0))


def _sctp_init(ports: bytes) -> bytes:
    """RFC 9260, 3.3.2: INIT with tag, window, one stream each way, initial TSN."""
    chunk = struct.pack("!BBHIIHHI", _SCTP_INIT, 0, 20, _SCTP_TAG, 65536, 1, 1, 1)
    blank = ports + bytes(8) + chunk
    # Appendix A: the CRC goes out least significant byte first.
    return ports + bytes(4) + crc32c(blank).to_bytes(4, "little") + chunk


def _with_sum(data: bytes, offset: int, value: int) -> bytes:
    return data[:offset] + value.to_bytes(2, "big") + data[offset + 2 :]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, to be stored in network byte order."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as SCTP uses it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
