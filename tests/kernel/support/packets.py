"""Frames of every kind the data path meets, built by scapy."""

from __future__ import annotations

from typing import Any, NamedTuple

from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData

CLIENT_MAC = "02:00:00:00:00:01"
NODE_MAC = "00:00:00:00:00:00"  # of a test run's device, the loopback: who else is not meant


class Shape(NamedTuple):
    """A way to wrap the same conversation. `extra` names IPv4 options or IPv6 headers, see
    `_headers`; `zero` is a UDP checksum of 0."""

    family: int = 4
    protocol: str = "tcp"
    extra: str = ""
    vlans: int = 0
    zero: bool = False

    def __str__(self) -> str:
        parts = [f"{self.protocol}{self.family}", self.extra, f"vlan{self.vlans}"]
        return "-".join([p for p in parts[:2] if p] + parts[2:] * bool(self.vlans)) + (
            "-zero" if self.zero else ""
        )

    @property
    def number(self) -> int:
        return {"tcp": 6, "udp": 17, "sctp": 132}[self.protocol]


EXTRAS = {4: ("options",), 6: ("hop", "destination", "routing", "atomic", "all")}

SHAPES = [
    *(Shape(family, protocol) for family in (4, 6) for protocol in ("tcp", "udp", "sctp")),
    Shape(4, "udp", zero=True),
    *(
        Shape(family, protocol, vlans=n)
        for family in (4, 6)
        for protocol in ("tcp", "udp")
        for n in (1, 2)
    ),
    *(
        Shape(family, protocol, extra)
        for family in (4, 6)
        for protocol in ("tcp", "udp", "sctp")
        for extra in EXTRAS[family]
    ),
    Shape(4, "tcp", "options", vlans=1),
    Shape(6, "udp", "all", vlans=2),
]
PLAIN = [Shape(family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
TCP_SHAPES = [Shape(4, "tcp"), Shape(6, "tcp")]
UDP_SHAPES = [Shape(4, "udp"), Shape(6, "udp")]
SCTP_SHAPES = [Shape(4, "sctp"), Shape(6, "sctp")]


def network(shape: Shape, src: str, dst: str, **fields: Any) -> Any:
    """Ethernet, VLAN tags and IP with what `extra` says, as a scapy packet."""
    out = Ether(src=CLIENT_MAC, dst=NODE_MAC)
    if shape.vlans == 2:
        out /= Dot1AD(vlan=7)
    if shape.vlans:
        out /= Dot1Q(vlan=5)
    if shape.family == 4:
        options = [IPOption_Router_Alert(), *(IPOption_NOP() for _ in range(8))]
        return out / IP(src=src, dst=dst, options=options if shape.extra else [], **fields)
    for header in (IPv6(src=src, dst=dst, **fields), *_headers(shape.extra)):
        out /= header
    return out


def _headers(extra: str) -> list[Any]:
    made = {
        "hop": IPv6ExtHdrHopByHop(options=[RouterAlert()]),
        "destination": IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]),
        "routing": IPv6ExtHdrRouting(addresses=["fd00:dead::1"], segleft=0),
        "atomic": IPv6ExtHdrFragment(id=77, offset=0, m=0),
    }
    if extra == "most":
        return list(made.values())[:3]
    if extra == "all":
        return [*made.values(), IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])]
    return [made[extra]] if extra else []


def transport(shape: Shape, sport: int, dport: int, payload: bytes, **tcp: Any) -> Any:
    """The transport header and what follows it."""
    if shape.protocol == "tcp":
        return TCP(sport=sport, dport=dport, **tcp) / payload
    if shape.protocol == "udp":
        return UDP(sport=sport, dport=dport, chksum=0 if shape.zero else None) / payload
    return SCTP(sport=sport, dport=dport, tag=9) / SCTPChunkData(
        data=payload, beginning=1, ending=1
    )


def frame(
    shape: Shape, src: str, sport: int, dst: str, dport: int, payload: bytes = b"", **tcp: Any
) -> bytes:
    """One whole frame. `tcp` are scapy's names: flags, seq, ack, window, options."""
    if shape.protocol != "tcp":
        tcp = {}
    return bytes(network(shape, src, dst) / transport(shape, sport, dport, payload, **tcp))
