"""A frame's packet cut into fragments, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether

from tests.kernel.support import model

# scapy's functions without types.
_split4: Callable[..., list[Any]] = fragment
_split6: Callable[..., list[Any]] = fragment6


def pieces(frame: bytes, number: int) -> list[bytes]:
    """The frame's packet in fragments with at most about 600 bytes each, in order."""
    packet = Ether(frame)
    link = frame[: model.parse(frame).network]
    if IP in packet:
        ip = packet[IP]
        ip.id = number
        del ip.chksum
        return [link + bytes(part) for part in _split4(ip, 600)]
    ip = packet[IPv6]
    layout = model.parse(frame)
    headers = frame[layout.network : layout.transport]
    # scapy fragments where an empty fragment header says so; ours goes behind the others.
    bare = IPv6(src=ip.src, dst=ip.dst) / IPv6ExtHdrFragment(id=number, nh=layout.protocol)
    parts = [bytes(p) for p in _split6(bare / frame[layout.transport : layout.end], 600)]
    return [link + _with_headers(headers, part) for part in parts]


def _with_headers(headers: bytes, part: bytes) -> bytes:
    """IPv6 fragment `part` with the chain `headers` (IPv6 header first) before its own."""
    rest = part[40:]
    if len(headers) == 40:
        return part
    chain = bytearray(headers)
    chain[40] = 44  # the one extension header is followed by the fragment header
    chain[4:6] = (len(headers) - 40 + len(rest)).to_bytes(2, "big")
    return bytes(chain) + rest


def cut(frame: bytes, number: int, sizes: Iterable[int]) -> list[bytes]:
    """The frame's packet in fragments of these sizes (multiples of 8) and one with the rest."""
    at = model.parse(frame)
    body, found, start = frame[at.transport : at.end], [], 0
    for size in (*sizes, len(body)):
        part = body[start : start + size]
        found.append(_fragment(frame, at, number, start, part, start + size < len(body)))
        start += size
    return found


def _fragment(
    frame: bytes, at: model.Layout, number: int, start: int, part: bytes, more: bool
) -> bytes:
    out = bytearray(frame[: at.transport])
    if at.family == 4:
        out[at.network + 2 : at.network + 4] = (at.transport - at.network + len(part)).to_bytes(
            2, "big"
        )
        out[at.network + 4 : at.network + 6] = number.to_bytes(2, "big")
        out[at.network + 6 : at.network + 8] = (start // 8 | 0x2000 * more).to_bytes(2, "big")
        model.fix_ipv4_sum(out, at.network, at.transport)
        return bytes(out) + part
    out[at.network + 4 : at.network + 6] = (8 + len(part)).to_bytes(2, "big")
    out[at.network + 6] = 44
    header = bytes([at.protocol, 0]) + (start | more).to_bytes(2, "big") + number.to_bytes(4, "big")
    return bytes(out) + header + part


def joined(parts: Sequence[bytes]) -> bytes:
    """Fragments in their order, put together again: one frame with one packet."""
    layouts = [model.parse(part) for part in parts]
    body = b"".join(p[at.transport : at.end] for p, at in zip(parts, layouts, strict=True))
    first, at = bytearray(parts[0]), layouts[0]
    if at.family == 4:
        first[at.network + 2 : at.network + 4] = (at.transport - at.network + len(body)).to_bytes(
            2, "big"
        )
        first[at.network + 6 : at.network + 8] = b"\0\0"
        model.fix_ipv4_sum(first, at.network, at.transport)
        return bytes(first[: at.transport]) + body
    length = at.transport - at.network - 40 + len(body)
    first[at.network + 4 : at.network + 6] = length.to_bytes(2, "big")
    first[at.transport - 6 : at.transport - 4] = b"\0\0"
    return bytes(first[: at.transport]) + body


def offset_of(frame: bytes) -> int:
    """Where a fragment's bytes begin in its datagram."""
    fragment = model.parse(frame).fragment
    assert fragment
    return fragment[1]
