"""Checking what comes out with a parser that is not ours: scapy."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_chksum
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrFragment,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.utils import checksum

from tests.kernel.support import model


def parsed(frame: bytes) -> Any:
    return Ether(frame)


def assert_sums(frame: bytes) -> Any:
    """Every checksum of a whole frame is right; returns the parsed frame.

    Transport sums of fragments are left out: they need the whole datagram.
    """
    packet = Ether(frame)
    if IP in packet:
        _assert_sums4(packet[IP])
    elif IPv6 in packet:
        _assert_sums6(packet[IPv6], frame)
    else:
        raise AssertionError(f"no IP in {packet!r}")
    return packet


def _assert_sums4(ip: Any) -> None:
    raw = bytes(ip)
    size = ip.ihl * 4
    assert checksum(raw[:size]) == 0, f"IPv4 header checksum of {ip!r}"
    if ip.frag or ip.flags.MF:
        return
    segment = raw[size : ip.len]
    if ip.proto == model.ICMP:
        assert checksum(segment) == 0, f"ICMP checksum of {ip!r}"
    elif ip.proto in (model.TCP, model.UDP):
        if ip.proto == model.UDP and ip[UDP].chksum == 0:
            return
        assert in4_chksum(ip.proto, ip, segment) == 0, f"transport checksum of {ip!r}"
    elif ip.proto == model.SCTP:
        _assert_crc(ip[SCTP])


def _assert_sums6(ip: Any, frame: bytes) -> None:
    if IPv6ExtHdrFragment in ip and (ip[IPv6ExtHdrFragment].offset or ip[IPv6ExtHdrFragment].m):
        return
    layout = model.parse(frame)
    segment = frame[layout.transport : layout.end]
    if layout.protocol in (model.TCP, model.UDP, model.ICMP6):
        sum6: Any = in6_chksum
        assert sum6(layout.protocol, ip, segment) == 0, f"transport checksum of {ip!r}"
    if layout.protocol == model.UDP:
        assert ip[UDP].chksum != 0, "UDP over IPv6 without checksum"
    elif layout.protocol == model.SCTP:
        _assert_crc(ip[SCTP])


def _assert_crc(sctp: Any) -> None:
    again = sctp.copy()
    del again.chksum
    assert SCTP(bytes(again)).chksum == sctp.chksum, f"CRC of {sctp!r}"


def assert_reset(request: bytes, answer: bytes) -> Any:
    """`answer` is the RST that `request` deserves (RFC 9293, 3.10.7.1), sent back to its sender."""
    before, packet = Ether(request), assert_sums(answer)
    _assert_turned(request, answer)
    asked, told = before[TCP], packet[TCP]
    assert (told.sport, told.dport) == (asked.dport, asked.sport)
    assert len(told.payload) == 0
    if asked.flags.A:
        assert told.flags == "R"
        assert told.seq == asked.ack
    else:
        consumed = len(asked.payload) + bool(asked.flags.S) + bool(asked.flags.F)
        assert told.flags == "RA"
        assert (told.seq, told.ack) == (0, (asked.seq + consumed) & 0xFFFFFFFF)
    return packet


def assert_unreachable(request: bytes, answer: bytes) -> Any:
    """`answer` is port unreachable about `request`, quoting its IP headers and 8 bytes."""
    packet = assert_sums(answer)
    _assert_turned(request, answer)
    asked, told = model.parse(request), model.parse(answer)
    kind = packet[ICMP] if asked.family == 4 else packet[ICMPv6DestUnreach]
    assert (kind.type, kind.code) == ((3, 3) if asked.family == 4 else (1, 4))
    assert answer[told.transport + 4 : told.transport + 8] == bytes(4)
    quote = answer[told.transport + 8 : told.end]
    assert quote == request[asked.network : min(asked.transport + 8, asked.end)]
    return packet


def _assert_turned(request: bytes, answer: bytes) -> None:
    """Back to the sender: MAC and IP addresses swapped, VLAN tags kept, a fresh lifetime."""
    before, after = model.parse(request), model.parse(answer)
    assert (answer[:6], answer[6:12]) == (request[6:12], request[:6])
    assert answer[12 : after.network] == request[12 : before.network]
    (src, dst), (new_src, new_dst) = before.addresses, after.addresses
    assert (answer[new_src], answer[new_dst]) == (request[dst], request[src])
    packet = Ether(answer)
    assert (packet[IP].ttl if IP in packet else packet[IPv6].hlim) >= 32
    assert after.end == len(answer)
