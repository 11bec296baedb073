"""ICMP errors about a packet, as a backend or a router down the path sends them."""

from typing import Any

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
)

from tests.kernel.support import model, packets
from tests.kernel.support.packets import Shape

ROUTER = {4: "192.0.2.99", 6: "2001:db8:ff::99"}
ERRORS: dict[int, dict[str, Any]] = {
    4: {
        "unreachable": ICMP(type=3, code=3),
        "too big": ICMP(type=3, code=4, nexthopmtu=1280),
        "time": ICMP(type=11, code=0),
        "parameter": ICMP(type=12, code=0, ptr=9),
    },
    6: {
        "unreachable": ICMPv6DestUnreach(code=4),
        "too big": ICMPv6PacketTooBig(mtu=1280),
        "time": ICMPv6TimeExceeded(code=0),
        "parameter": ICMPv6ParamProblem(code=1, ptr=6),
    },
}


def aged(frame: bytes) -> bytes:
    """The packet as a router down the path saw it: IP only, one hop older."""
    at = model.parse(frame)
    out = bytearray(frame)
    out[at.network + (8 if at.family == 4 else 7)] -= 1
    if at.family == 4:
        model.fix_ipv4_sum(out, at.network, at.transport)
    return bytes(out[at.network :])


def error(
    shape: Shape, sender: str, to: str, about: bytes, kind: str = "unreachable", size: int = 1232
) -> bytes:
    """An ICMP error from `sender` that quotes up to `size` bytes of the IP packet `about`."""
    made = ERRORS[shape.family][kind]
    bare = shape._replace(extra="")
    return bytes(packets.network(bare, sender, to) / made / about[:size])


def quote_of(frame: bytes) -> bytes:
    at = model.parse(frame)
    return frame[at.transport + 8 : at.end]
