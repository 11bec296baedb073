"""A frame's packet cut into fragments."""

from __future__ import annotations

from collections.abc import Callable
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
