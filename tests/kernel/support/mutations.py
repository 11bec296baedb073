"""Frames of every kind the data path knows, broken at random, and what may come of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest

from tests.kernel.support import model, packets
from tests.kernel.support.conversation import BACKENDS, CLIENT, PORT, SERVICE, Conversation
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import Endpoint, World

EMPTY = {4: "10.96.0.20", 6: "fd00:96::20"}
ELSEWHERE = {4: "198.51.100.9", 6: "2001:db8::9"}
SHORTEST = 14 + 40  # a test run takes no IP frame without a whole header
_INTERESTING = (0, 1, 4, 5, 6, 17, 20, 43, 44, 58, 59, 60, 64, 127, 128, 132, 254, 255)


def corpus(world: World, family: int) -> list[bytes]:
    """Services, flows in every state, and frames of and around them."""
    frames: list[bytes] = []
    for shape in packets.SHAPES:
        if shape.family == family:
            frames += _frames_of(world, shape)
    frames += list(_without_ports(family))
    return frames


def _frames_of(world: World, shape: Shape) -> Iterator[bytes]:
    """Of one shape: known and new flows, both directions, refused, direct, errors, fragments."""
    family, protocol = shape.family, shape.protocol
    backends: list[Endpoint] = BACKENDS[family]
    if protocol == "sctp":
        backends = [(ip, PORT) for ip, _ in backends]
    service = world.add_service(SERVICE[family], PORT, protocol, backends)
    world.add_service(EMPTY[family], PORT, protocol)
    talk = Conversation(world, shape, service, sport=40000 + len(str(shape))).open()
    sent, answered = talk.request("PA", b"request"), talk.reply("PA", b"answer")
    yield from (sent, answered, talk.request("FA"), talk.request("R"), talk.request("S"))
    new = Conversation(world, shape, service, sport=50000)
    yield from (new.request("S", b"x"), new.request("A", b"x"))
    for address in (EMPTY[family], ELSEWHERE[family], talk.backend and talk.backend[0]):
        assert address
        port = talk.backend[1] if talk.backend and address == talk.backend[0] else PORT
        yield packets.frame(shape, talk.client, talk.sport, address, port, b"x", flags="S")
    assert talk.backend
    translated = model.rewrite(sent, dst=talk.backend[0], dport=talk.backend[1])
    seen = model.rewrite(answered, src=talk.address, sport=PORT)
    yield _error(shape, ELSEWHERE[family], talk.client, translated)
    yield _error(shape, talk.client, talk.address, seen)
    yield from (_fragment(sent, 0), _fragment(sent, 64), _fragment(answered, 0))


def _error(shape: Shape, src: str, dst: str, about: bytes) -> bytes:
    error = ICMP(type=3, code=4) if shape.family == 4 else ICMPv6DestUnreach(code=4)
    quote = about[model.parse(about).network :]
    return bytes(packets.network(shape._replace(extra=""), src, dst) / error / quote)


def _fragment(frame: bytes, offset: int) -> bytes:
    """The frame, saying that it is a fragment at this offset with more to follow."""
    at = model.parse(frame)
    out = bytearray(frame)
    if at.family == 4:
        out[at.network + 6 : at.network + 8] = (0x2000 | offset // 8).to_bytes(2, "big")
        model.fix_ipv4_sum(out, at.network, at.transport)
        return bytes(out)
    length = at.end - at.network - 40 + 8
    out[at.network + 4 : at.network + 6] = length.to_bytes(2, "big")
    header = bytes([out[at.network + 6], 0]) + (offset | 1).to_bytes(2, "big") + b"\0\0\1\2"
    out[at.network + 6] = 44
    return bytes(out[: at.network + 40]) + header + frame[at.network + 40 :]


def _without_ports(family: int) -> Iterator[bytes]:
    echo = ICMP(type=8) if family == 4 else ICMPv6EchoRequest()
    for address in (SERVICE[family], ELSEWHERE[family]):
        base = packets.network(Shape(family), CLIENT[family], address)
        yield bytes(base / echo / b"ping payload")
        field = {"proto": 50} if family == 4 else {"nh": 50}
        yield bytes(packets.network(Shape(family), CLIENT[family], address, **field) / bytes(40))


def mutated(frame: bytes, dice: random.Random) -> bytes:
    """One to three accidents, most of them in the headers. The Ethernet addresses are spared."""
    out = bytearray(frame)
    for _ in range(dice.choice((1, 1, 2, 3))):
        kind = dice.random()
        at = dice.randrange(12, min(len(out), 110))
        if kind < 0.35:
            out[at] ^= 1 << dice.randrange(8)
        elif kind < 0.6:
            out[at] = dice.choice(_INTERESTING)
        elif kind < 0.75:
            out[at : at + 2] = dice.randbytes(2)
        elif kind < 0.85 and len(out) > SHORTEST:
            del out[dice.randrange(SHORTEST, len(out)) :]
        elif kind < 0.9:
            out += dice.randbytes(dice.randrange(1, 60))
        elif kind < 0.95 and len(out) > SHORTEST + 8:
            del out[at : at + dice.choice((1, 2, 4, 8))]
        else:
            out[at:at] = out[at : at + dice.choice((1, 2, 4, 8))]
    if len(out) < SHORTEST:
        out += bytes(SHORTEST - len(out))
    return bytes(out)


def allowed(frame: bytes, layout: model.Layout) -> list[slice]:
    """What a translation may change in this frame: for ICMP errors also in what they quote."""
    places = list(model.may_change(frame, layout))
    error = frame[layout.transport] if layout.transport < layout.end else 0
    icmp, errors = (model.ICMP, (3, 11, 12)) if layout.family == 4 else (model.ICMP6, (1, 2, 3, 4))
    if layout.protocol == icmp and error in errors:
        places.append(slice(layout.transport + 2, layout.transport + 4))
        places += _quoted(frame, layout.transport + 8, layout.family)
    return places


def _quoted(frame: bytes, at: int, family: int) -> Iterator[slice]:
    """Addresses, checksums and ports of a quoted packet, which may be cut off anywhere."""
    if family == 4:
        transport = at + (frame[at] & 15) * 4
        protocol = frame[at + 9]
        yield slice(at + 10, at + 20)
    else:
        transport, protocol = _behind_extensions(frame, at + 40, frame[at + 6])
        yield slice(at + 8, at + 40)
    yield slice(transport, transport + 4)
    if protocol in model.CHECKSUM_AT:
        start = transport + model.CHECKSUM_AT[protocol]
        yield slice(start, start + 2)


def _behind_extensions(frame: bytes, at: int, protocol: int) -> tuple[int, int]:
    """Where a quoted IPv6 packet's transport header would be, and its protocol."""
    while protocol in (0, 43, 44, 60) and at + 8 <= len(frame):
        size = 8 if protocol == 44 else (frame[at + 1] + 1) * 8
        protocol, at = frame[at], at + size
    return at, protocol


def sums(frame: bytes, layout: model.Layout) -> list[int]:
    """What the checksummed parts of a packet add up to: a translation keeps it, right or wrong."""
    found = []
    if layout.family == 4:
        found.append(model.ones_complement(frame[layout.network : layout.transport]))
    if layout.protocol in model.CHECKSUM_AT and layout.has_ports and not layout.fragment:
        at = layout.transport + model.CHECKSUM_AT[layout.protocol]
        if layout.protocol != model.UDP or frame[at : at + 2] != b"\0\0":
            src, dst = layout.addresses
            data = frame[src] + frame[dst] + frame[layout.transport : layout.end]
            found.append(model.ones_complement(data))
    # 0 and 0xffff are the same number in this arithmetic.
    return [value % 0xFFFF for value in found]
