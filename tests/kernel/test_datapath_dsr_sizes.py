"""DSR: what fits, what is told whom, fragments, and marks of routers on the way."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet import fragment as cut4
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether

from ebpf.kernel import testrun
from tests.kernel.support import checks, model, packets
from tests.kernel.support.driver import patched
from tests.kernel.support.dsr import (
    BALANCER,
    EACH,
    FORMS,
    OVERHEAD,
    SUMS,
    WAY,
    Receiver,
    Sender,
    call,
    outer_of,
    sender,
    wrapped,
)
from tests.kernel.support.icmp_errors import ROUTER, aged, error
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, Shape
from tests.kernel.support.uplink import OUTSIDE, REMOTE
from tests.kernel.support.world import NODE

pytestmark = pytest.mark.kernel
__all__ = ["sender"]


OPTIONS = {
    "first": [("MSS", 1460), ("SAckOK", b"")],
    "behind two": [("SAckOK", b""), ("MSS", 1460)],
    "at an odd place": [("NOP", None), ("MSS", 1460), ("WScale", 7)],
    "last": [("SAckOK", b""), ("Timestamp", (7, 8)), ("WScale", 7), ("NOP", None), ("MSS", 1460)],
}


def mss_of(frame: bytes) -> list[int]:
    """By another parser."""
    return [value for name, value in Ether(frame)[TCP].options if name == "MSS"]


@FORMS
@SUMS
@pytest.mark.parametrize("where", OPTIONS)
@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_segment_size_is_lowered_on_both_ways(
    sender: Sender, shape: Shape, where: str, form: str, sums: int
) -> None:
    sender.serve(shape, form)
    frame = call(shape, "S", options=OPTIONS[where])
    out = sender.send(frame, sums)
    lower = 1460 - OVERHEAD[form, shape.family]
    _, _, inner = outer_of(out, shape.family)
    assert mss_of(frame[:14] + inner) == [lower]
    receiver = Receiver(sender.world, shape, form)
    assert mss_of(receiver.take(out)) == [lower]
    address, port = REMOTE[shape.family]
    place = (address, port, OUTSIDE[shape.family], 40000)
    answer = packets.frame(shape, *place, flags="SA", options=OPTIONS[where])
    assert mss_of(receiver.answer(answer)) == [lower]


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize(
    "options", [[], [("NOP", None)] * 4, [("MSS", 60)], [(77, bytes(30))]], ids=str
)
def test_options_without_a_size_to_lower_stay(
    sender: Sender, shape: Shape, options: list[object]
) -> None:
    sender.serve(shape)
    frame = call(shape, "S", options=options)
    assert outer_of(sender.send(frame), shape.family)[2] == frame[14:]


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_broken_options_stay(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    for options in (
        b"\x03\x00\x02\x04",
        b"\x02\x03\x05\xb4",
        b"\x08\xff\x02\x04",
        b"\x01\x01\x01\x02",
    ):
        frame = bytearray(call(shape, "S", options=[("NOP", None)] * 4))
        at = model.parse(bytes(frame)).transport + 20
        frame[at : at + 4] = options
        assert outer_of(sender.send(bytes(frame)), shape.family)[2] == bytes(frame)[14:]


@FORMS
@EACH
def test_what_does_not_fit_is_told_its_sender(sender: Sender, shape: Shape, form: str) -> None:
    sender.serve(shape, form)
    sender.mtu(1400)
    overhead = OVERHEAD[form, shape.family]
    sender.send(call(shape))
    headers = len(call(shape, "A")) - 14
    fits = call(shape, "A", b"x" * (1400 - overhead - headers))
    _, _, inner = outer_of(sender.send(fits), shape.family)
    assert inner == fits[14:]
    large = uncut(call(shape, "A", b"x" * (1404 - overhead - headers)))
    outcome = sender.take(large)
    assert (outcome.verdict, outcome.reasons) == (model.REDIRECT, {"dsr_too_big": 1})
    assert_too_big(large, outcome.frame, 1400 - overhead)


def uncut(frame: bytes) -> bytes:
    """With DF, if it is IPv4: what may be cut is (test_datapath_dsr_cut.py)."""
    at = model.parse(frame)
    return patched(frame, at.network + 6, b"\x40\0") if at.family == 4 else frame


def assert_too_big(asked: bytes, told: bytes, mtu: int) -> None:
    packet = checks.assert_sums(told)
    before, after = model.parse(asked), model.parse(told)
    if before.family == 4:
        error = packet[ICMP]
        assert (error.type, error.code, error.nexthopmtu) == (3, 4, mtu)
    else:
        assert packet[ICMPv6PacketTooBig].mtu == mtu
    (src, dst), (new_src, new_dst) = before.addresses, after.addresses
    assert (told[new_src], told[new_dst]) == (asked[dst], asked[src])
    assert (told[:6], told[6:12]) == (asked[6:12], asked[:6])
    quote = told[after.transport + 8 : after.end]
    assert quote == asked[before.network : before.transport + 8]


@FORMS
@EACH
def test_what_a_router_finds_too_big_is_told_the_client(
    sender: Sender, shape: Shape, form: str
) -> None:
    """It tells this node, about the outer packet."""
    sender.serve(shape, form)
    frame = call(shape, payload=b"x" * 1000)
    sent = sender.send(frame)
    family = shape.family
    told = error(shape, ROUTER[family], WAY[family], aged(sent), "too big", size=200)
    outcome = sender.take(told)
    assert (outcome.verdict, outcome.reasons) == (model.REDIRECT, {"dsr_too_big": 1})
    packet = checks.assert_sums(outcome.frame)
    mtu = 1280 - OVERHEAD[form, family]
    assert (packet[ICMP].nexthopmtu if family == 4 else packet[ICMPv6PacketTooBig].mtu) == mtu
    out = model.tuple_of(outcome.frame)
    assert (out.src, out.dst) == tuple(map(model.packed, (BALANCER[family], OUTSIDE[family])))
    layout, asked = model.parse(outcome.frame), model.parse(frame)
    quote = outcome.frame[layout.transport + 8 : layout.end]
    assert quote == frame[asked.network : asked.transport + 8]


@FORMS
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_other_errors_about_outer_packets_are_the_stacks(
    sender: Sender, shape: Shape, form: str
) -> None:
    """Of another kind, about another flow, with too little of it."""
    sender.serve(shape, form)
    family = shape.family
    sent = sender.send(call(shape))
    other = wrapped(call(shape, sport=41000), family, WAY[family], REMOTE[family][0], form)
    short = OVERHEAD[form, family] + (20, 40)[family == 6] + 7
    for told in (
        error(shape, ROUTER[family], WAY[family], aged(sent), "unreachable", size=200),
        error(shape, ROUTER[family], WAY[family], aged(other), "too big", size=200),
        error(shape, ROUTER[family], WAY[family], aged(sent), "too big", size=short),
        error(shape, ROUTER[family], WAY[family], aged(sent), "too big", size=28),
    ):
        outcome = sender.take(told)
        assert (outcome.verdict, outcome.frame) == (model.PASS, told)


@FORMS
@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_bundle_is_judged_by_its_segments(sender: Sender, shape: Shape, form: str) -> None:
    """A test run's bundle has a size and no type, and the kernel gives such a one no outer header:
    one that fits gets as far as that. Real ones are sent in tests/lab/test_dsr.py."""
    sender.serve(shape, form)
    sender.send(call(shape))
    mtu = 1500 - OVERHEAD[form, shape.family]
    size = mtu - (len(call(shape, "A")) - 14)
    bundle = call(shape, "A", b"x" * 2800)
    verdict, frame, reasons = run_bundle(sender, bundle, size + 1)
    assert (verdict, reasons) == (model.REDIRECT, {"dsr_too_big": 1})
    assert_too_big(bundle, frame, mtu)
    verdict, _, reasons = run_bundle(sender, bundle, size)
    assert (verdict, reasons) == (model.DROP, {"rewrite_failed": 1})


def run_bundle(sender: Sender, frame: bytes, size: int) -> tuple[int, bytes, dict[str, int]]:
    """Verdict, frame and what was counted."""
    world, context = sender.world, testrun.context(gso_size=size, gso_segs=2)
    before = world.counts()
    program = world.programs.fds["entry_from_net"]
    result = sender.space.run(lambda: testrun.run(program, frame, ctx=context))
    moved = {name: count - before[name] for name, count in world.counts().items()}
    return result.retval, result.packet, {name: n for name, n in moved.items() if n}


@pytest.mark.parametrize("kept", [True, False], ids=["set", "clear"])
def test_the_outer_header_may_be_cut_where_the_packet_may(sender: Sender, kept: bool) -> None:
    shape = Shape(4, "udp")
    sender.serve(shape)
    frame = bytearray(call(shape))
    frame[20] = 0x40 if kept else 0
    model.fix_ipv4_sum(frame, 14, 34)
    ip, _, inner = outer_of(sender.send(bytes(frame)), 4)
    assert bool(ip.flags.DF) is kept
    assert inner == bytes(frame)[14:]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_congestion_on_the_way_is_told_inside(sender: Sender, shape: Shape) -> None:
    """The class goes along to the outer header, and a router's mark comes back (RFC 6040)."""
    sender.serve(shape)
    frame = with_class(call(shape), 0xB8 | 2)
    out = sender.send(frame)
    assert class_of(out) == 0xB8 | 2
    receiver = Receiver(sender.world, shape)
    assert class_of(receiver.take(with_class(out, 0xB8 | 3))) == 0xB8 | 3
    assert class_of(receiver.take(out)) == 0xB8 | 2


def class_of(frame: bytes) -> int:
    word = int.from_bytes(frame[14:16], "big")
    return word & 0xFF if frame[14] >> 4 == 4 else word >> 4 & 0xFF


def with_class(frame: bytes, value: int) -> bytes:
    out = bytearray(frame)
    if frame[14] >> 4 == 4:
        out[15] = value
        model.fix_ipv4_sum(out, 14, 34)
    else:
        word = int.from_bytes(frame[14:16], "big") & 0xF00F | value << 4
        out[14:16] = word.to_bytes(2, "big")
    return bytes(out)


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_go_along(sender: Sender, family: int) -> None:
    shape = Shape(family, "udp")
    sender.serve(shape)
    parts = fragments(shape, b"y" * 1000)
    sent = [sender.send(part) for part in parts]
    for part, out in zip(parts, sent, strict=True):
        assert outer_of(out, family)[2] == part[14:]
    receiver = Receiver(sender.world, shape)
    address, port = REMOTE[family]
    for part, out in zip(parts, sent, strict=True):
        outcome = receiver.world.from_net(out)
        assert outcome.verdict == model.PASS
        assert outcome.frame == model.rewrite(part, dst=address, dport=port)
    receiver = Receiver(sender.world, shape)
    outcome = receiver.world.from_net(sent[1])
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"fragment_unmatched": 1})


def fragments(shape: Shape, payload: bytes) -> list[bytes]:
    whole = Ether(call(shape, payload=payload))
    if shape.family == 4:
        cut: Any = cut4
        return [bytes(part) for part in cut(whole, 504)]
    layer = whole[IPv6]
    headed = IPv6(src=layer.src, dst=layer.dst) / IPv6ExtHdrFragment(id=5) / layer.payload
    head = Ether(src=packets.CLIENT_MAC, dst=packets.NODE_MAC)
    cut = fragment6
    return [bytes(head / part) for part in cut(headed, 600)]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_errors_about_answers_go_to_the_endpoint(sender: Sender, shape: Shape) -> None:
    """A router's word about what left with the service's address comes to whoever has that."""
    sender.serve(shape)
    asked = call(shape)
    sent = sender.send(asked)
    family, (address, port) = shape.family, REMOTE[shape.family]
    answer = packets.frame(shape, address, port, OUTSIDE[family], 40000, b"z" * 60, flags="SA")
    left = model.rewrite(answer, src=BALANCER[family], sport=80)
    told = error(shape, ROUTER[family], BALANCER[family], aged(left), size=80)
    out = sender.send(told)
    assert outer_of(out, family)[2] == told[14:]
    receiver = Receiver(sender.world, shape)
    receiver.take(sent)
    got = receiver.take(out)
    layout = model.parse(got)
    assert got[layout.addresses[1]] == model.packed(address)
    quote = got[layout.transport + 8 : layout.end]
    assert quote == aged(answer)[:80]
    outcome = receiver.world.from_net(wrapped(told, family, NODE[family], address[:-1] + "9"))
    assert (outcome.verdict, outcome.reasons) == (model.PASS, {"dsr_unknown": 1})
