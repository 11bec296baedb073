"""DSR: what the node that is called sends on, and what the endpoint's node makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, TCP
from scapy.layers.inet import fragment as cut4
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import Ether

from ebpf.kernel import testrun
from tests.kernel.support import checks, model, packets
from tests.kernel.support.dsr import (
    BALANCER,
    DSR_PORT,
    IN_IP,
    OVERHEAD,
    WAY,
    Receiver,
    Sender,
    call,
    outer_of,
    wrapped,
)
from tests.kernel.support.icmp_errors import ROUTER, aged, error
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE
from tests.kernel.support.world import NODE, World

pytestmark = pytest.mark.kernel
EACH = pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
FORMS = pytest.mark.parametrize("form", ["udp", "ipip"])
SUMS = pytest.mark.parametrize("sums", [0, testrun.CHECKSUM_COMPLETE], ids=["plain", "complete"])


@pytest.fixture
def sender(world: World) -> Iterator[Sender]:
    made = Sender(world)
    yield made
    made.close()


def node_port(shape: Shape) -> tuple[str, int]:
    return NODE[shape.family], NODE_PORT


@SUMS
@FORMS
@EACH
def test_the_packet_goes_to_the_endpoint_as_it_is(
    sender: Sender, shape: Shape, form: str, sums: int
) -> None:
    sender.serve(shape, form)
    ports = set()
    for flags, payload in (("S", b""), ("A", b""), ("PA", b"x" * 999)):
        frame = call(shape, flags, payload)
        out = sender.send(frame, sums)
        ip, udp, inner = outer_of(out, shape.family)
        assert inner == frame[14:]
        assert (ip.src, ip.dst) == (WAY[shape.family], REMOTE[shape.family][0])
        assert len(out) == len(frame) + OVERHEAD[form, shape.family]
        if shape.family == 4:
            assert (ip.len, ip.ttl) == (len(out) - 14, 64)
            assert model.ones_complement(out[14:34]) == 0
        else:
            assert (ip.plen, ip.hlim) == (len(out) - 54, 64)
        if form == "udp":
            assert (udp.dport, udp.len, udp.chksum) == (DSR_PORT, len(inner) + 8, 0)
            ports.add(udp.sport)
        else:
            assert udp is None
    assert len(ports) <= 1
    assert all(port >= 49152 for port in ports)


@EACH
def test_one_cell_remembers_the_endpoint(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    for flags in ("S", "A", "A"):
        sender.send(call(shape, flags))
    (cell,) = sender.world.flows()
    assert "dsr" in cell.flags
    assert cell.next == cell.place
    assert (cell.address, cell.port) == REMOTE[shape.family]
    assert (cell.packets, cell.service) == (3, service.id)
    assert sender.world.service_counts(service)["live"] == 1


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_flows_spread_over_the_ports(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    ports = {
        outer_of(sender.send(call(shape, sport=20000 + n)), shape.family)[1].sport
        for n in range(64)
    }
    assert len(ports) > 48


@EACH
def test_a_node_port_is_sent_on_by_the_address_that_was_called(
    sender: Sender, shape: Shape
) -> None:
    sender.serve(shape)
    ip, _, _ = outer_of(sender.send(call(shape, to=node_port(shape))), shape.family)
    assert (ip.src, ip.dst) == (NODE[shape.family], REMOTE[shape.family][0])


@SUMS
@FORMS
@EACH
def test_both_ends(sender: Sender, shape: Shape, form: str, sums: int) -> None:
    """The pod gets the client's packet at its own port, and the client the service's answer."""
    for to in ((BALANCER[shape.family], 80), node_port(shape)):
        sender.world.reset()
        sender.serve(shape, form)
        asked = [call(shape, f, p, to=to) for f, p in (("S", b""), ("A", b""), ("PA", b"more"))]
        sent = [sender.send(frame) for frame in asked]
        receiver = Receiver(sender.world, shape, form)
        if to == node_port(shape):  # it is the other node's address that was called
            receiver.world.remove_frontend(*to, shape.number)
            other = {4: "192.0.2.2", 6: "fd00:192::2"}[shape.family]
            receiver.move_node(shape.family, other)
        address, port = REMOTE[shape.family]
        for frame, outer in zip(asked, sent, strict=True):
            got = receiver.take(outer, sums)
            assert got == model.rewrite(frame, dst=address, dport=port)
            answer = packets.frame(shape, address, port, OUTSIDE[shape.family], 40000, b"yes")
            told = receiver.answer(answer)
            assert told == model.rewrite(answer, src=to[0], sport=to[1])


@EACH
def test_the_receivers_flow_is_like_any_from_outside(world: World, shape: Shape) -> None:
    receiver = Receiver(world, shape)
    receiver.take(wrapped(call(shape), shape.family, NODE[shape.family], REMOTE[shape.family][0]))
    forward, reply = sorted(world.flows(), key=lambda flow: flow.reply)
    assert "dsr" not in forward.flags
    assert "dsr" in reply.flags
    assert (forward.next, reply.next) == (reply.place, forward.place)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_the_address_that_it_came_to_says_which_endpoint(world: World, shape: Shape) -> None:
    address = REMOTE[shape.family][0]
    here = [(address[:-1] + digit, 8080 + int(digit)) for digit in "23456"]
    receiver = Receiver(world, shape, here=here)
    for sport, (address, port) in enumerate(here, 40000):
        frame = call(shape, sport=sport)
        got = receiver.take(wrapped(frame, shape.family, NODE[shape.family], address))
        assert got == model.rewrite(frame, dst=address, dport=port)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_two_addresses_of_a_service_do_not_collide(world: World, shape: Shape) -> None:
    """One client's port towards both: the second flow gets another one here."""
    receiver = Receiver(world, shape)
    address, port = REMOTE[shape.family]
    first = call(shape)
    second = call(shape, to=node_port(shape))
    source = NODE[shape.family]
    seen = []
    for frame in (first, second):
        got = receiver.take(wrapped(frame, shape.family, source, address))
        seen.append(model.tuple_of(got).sport)
    assert seen[0] == 40000 != seen[1]
    for client_port, called in zip(
        seen, ((BALANCER[shape.family], 80), node_port(shape)), strict=True
    ):
        answer = packets.frame(shape, address, port, OUTSIDE[shape.family], client_port, flags="SA")
        told = model.tuple_of(receiver.answer(answer))
        assert (told.src, told.sport) == (model.packed(called[0]), called[1])
        assert told.dport == 40000


@FORMS
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_what_our_tables_do_not_join_is_not_let_in(world: World, shape: Shape, form: str) -> None:
    receiver = Receiver(world, shape, form)
    family, (address, _) = shape.family, REMOTE[shape.family]
    stranger = {4: "8.0.1.77", 6: "2001:db8:86dd::1:77"}[family]
    for frame, endpoint in (
        (call(shape, to=(BALANCER[family], 81)), address),  # no such port
        (call(shape), stranger),  # no endpoint of the service
    ):
        sent = wrapped(frame, family, NODE[family], endpoint, form)
        outcome = world.from_net(sent)
        assert (outcome.verdict, outcome.frame) == (model.PASS, sent)
        assert outcome.reasons == {"dsr_unknown": 1}
    elsewhere = {4: "198.51.100.5", 6: "2001:db8:51::5"}[family]
    frame = wrapped(call(shape, to=(elsewhere, NODE_PORT)), family, NODE[family], address, form)
    outcome = world.from_net(frame)
    assert (outcome.verdict, outcome.frame, outcome.reasons) == (model.PASS, frame, {})
    frame = wrapped(call(shape), family, NODE[family], address, form)
    outcome = world.from_pod(frame)  # pods send on nothing
    assert (outcome.verdict, outcome.frame) == (model.PASS, frame)
    assert not world.flows()
    receiver.take(frame)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_cluster_ip_is_not_reached_so(world: World, shape: Shape) -> None:
    receiver = Receiver(world, shape)
    inside = {4: "10.96.0.80", 6: "fd00:96::80"}[shape.family]
    world.call_by(receiver.service, inside, 80, world.flag("FRONTEND_CLUSTER_IP"))
    frame = call(shape, to=(inside, 80))
    outcome = world.from_net(
        wrapped(frame, shape.family, NODE[shape.family], REMOTE[shape.family][0])
    )
    assert (outcome.verdict, outcome.reasons) == (model.PASS, {"dsr_unknown": 1})


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_pods_may_have_the_port_themselves(world: World, shape: Shape) -> None:
    """What is no packet inside goes to whoever listens."""
    Receiver(world, shape)
    udp = Shape(shape.family, "udp")
    for payload in (b"", b"hello", b"\x45" + bytes(60), b"\x60" + bytes(80)):
        frame = packets.frame(
            udp, OUTSIDE[shape.family], 50000, REMOTE[shape.family][0], DSR_PORT, payload
        )
        outcome = world.from_net(frame)
        assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


def test_source_ranges_hold_at_the_endpoints_node_too(world: World) -> None:
    shape = Shape(4, "tcp")
    receiver = Receiver(world, shape)
    kind = world.flag("FRONTEND_LOAD_BALANCER") | world.flag("FRONTEND_SOURCE_RANGES")
    world.remove_frontend(BALANCER[4], 80, shape.number)
    world.call_by(receiver.service, BALANCER[4], 80, kind)
    outcome = world.from_net(wrapped(call(shape), 4, NODE[4], REMOTE[4][0]))
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"source_range": 1})


# ── size ──────────────────────────────────────────────────────────────────────────────────────────

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
    large = call(shape, "A", b"x" * (1404 - overhead - headers))
    outcome = sender.take(large)
    assert (outcome.verdict, outcome.reasons) == (model.REDIRECT, {"dsr_too_big": 1})
    assert_too_big(large, outcome.frame, 1400 - overhead)


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


# ── ways there ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_without_a_route_it_is_dropped_and_counted(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    sender.space.ip("route", "del", REMOTE[shape.family][0], "dev", "left")
    outcome = sender.take(call(shape))
    assert outcome.verdict == model.DROP
    assert outcome.reasons == {"forwarded": 1, "dsr_unrouted": 1}


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_kernels_that_tell_no_source_ask_the_device(sender: Sender, shape: Shape) -> None:
    """Before 6.7: what the agent says of the device."""
    sender.serve(shape)
    sender.world.configure(flags=sender.world.flag("CONFIG_MASQUERADE_BY_DEVICE"))
    ip, _, _ = outer_of(sender.send(call(shape)), shape.family)
    assert ip.src == NODE[shape.family]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_not_for_cluster_ips_pods_and_endpoints_here(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    inside = {4: "10.96.0.80", 6: "fd00:96::80"}[shape.family]
    world = sender.world
    world.call_by(service, inside, 80, world.flag("FRONTEND_CLUSTER_IP"))
    address, port = REMOTE[shape.family]
    frame = call(shape, to=(inside, 80))
    assert sender.take(frame).frame == model.rewrite(frame, dst=address, dport=port)
    frame = call(shape, sport=40001)
    assert world.from_pod(frame).frame == model.rewrite(frame, dst=address, dport=port)
    world.array("backends").records["flags"][service.backends[REMOTE[shape.family]]] |= world.flag(
        "BACKEND_LOCAL"
    )
    frame = call(shape, sport=40002)
    assert sender.take(frame).frame == model.rewrite(frame, dst=address, dport=port)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_from_a_device_without_link_header_the_old_way(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    outcome = sender.world.from_tunnel(call(shape, payload=b"x" * 40)[14:])
    assert outcome.verdict == model.PASS
    assert len(sender.world.flows()) == 4


# ── a live service's mode ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_each_flow_keeps_the_mode_it_began_with(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    flags = sender.world.array("services").records["flags"]
    flags[service.id] = 0
    first = call(shape)
    assert sender.take(first).verdict == model.PASS
    flags[service.id] = sender.world.flag("SERVICE_DSR")
    second = call(shape, sport=40001)
    sender.send(second)
    assert sender.take(call(shape, "A")).verdict == model.PASS
    flags[service.id] = 0
    sender.send(call(shape, "A", sport=40001))
    assert sender.take(call(shape, "A")).verdict == model.PASS
    assert sender.take(call(shape, sport=40002)).verdict == model.PASS


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_flows_outlive_their_service_at_both_ends(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    sent = [sender.send(call(shape, f, to=node_port(shape))) for f in "SA"]
    if shape.protocol == "tcp":
        sender.world.remove_frontend(*node_port(shape), shape.number)
        sender.world.remove_service(service)
        sent.append(sender.send(call(shape, "A", to=node_port(shape))))
    receiver = Receiver(sender.world, shape)
    receiver.take(sent[0])
    receiver.take(sent[1])
    if shape.protocol == "tcp":
        receiver.world.remove_frontend(*node_port(shape), shape.number)
        receiver.world.remove_service(receiver.service)
        receiver.take(sent[2])


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_datagrams_leave_an_endpoint_that_stops_serving(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    sender.send(call(shape))
    other = (REMOTE[shape.family][0][:-1] + "2", 9090)
    sender.space.ip("route", "add", other[0], "dev", "left")
    sender.world.set_backends(service, [other])
    ip, _, _ = outer_of(sender.send(call(shape)), shape.family)
    assert ip.dst == other[0]


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_datagrams_go_to_the_endpoint_that_is_named_now(world: World, shape: Shape) -> None:
    here = [REMOTE[shape.family], (REMOTE[shape.family][0][:-1] + "2", 9090)]
    receiver = Receiver(world, shape, here=here)
    for address, port in (*here, here[0]):
        frame = call(shape)
        got = receiver.take(wrapped(frame, shape.family, NODE[shape.family], address))
        assert got == model.rewrite(frame, dst=address, dport=port)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_connection_that_lives_stays_with_its_endpoint(world: World, shape: Shape) -> None:
    """Whoever sends outer headers cannot take it away."""
    here = [REMOTE[shape.family], (REMOTE[shape.family][0][:-1] + "2", 9090)]
    receiver = Receiver(world, shape, here=here)
    (address, port), other = here[0], here[1][0]
    for flags, to in (("S", address), ("A", address), ("A", other), ("S", other)):
        frame = call(shape, flags)
        got = receiver.take(wrapped(frame, shape.family, NODE[shape.family], to))
        assert got == model.rewrite(frame, dst=address, dport=port)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_what_the_endpoints_node_does_not_know_goes_on(world: World, shape: Shape) -> None:
    """In mid-stream: the other node knows the connection. A reset is not worth a flow."""
    receiver = Receiver(world, shape)
    family, (address, port) = shape.family, REMOTE[shape.family]
    outcome = world.from_net(wrapped(call(shape, "R"), family, NODE[family], address))
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"no_flow_reset": 1})
    frame = call(shape, "A", b"in the middle")
    got = receiver.take(wrapped(frame, family, NODE[family], address))
    assert got == model.rewrite(frame, dst=address, dport=port)


# ── one direction alone ───────────────────────────────────────────────────────────────────────────


def state(sender: Sender) -> str:
    (cell,) = sender.world.flows()
    return cell.state


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_connection_opens_and_closes_by_what_the_client_says(
    sender: Sender, shape: Shape
) -> None:
    service = sender.serve(shape)
    sender.send(call(shape, "S", seq=1000))
    assert state(sender) == "syn"
    sender.send(call(shape, "A", seq=1001, ack=1))
    assert state(sender) == "established"
    sender.send(call(shape, "PA", b"x" * 100, seq=1001, ack=1))
    sender.send(call(shape, "FA", seq=1101, ack=1))
    assert state(sender) == "fin_wait"
    sender.send(call(shape, "A", seq=1102, ack=2))
    assert state(sender) == "fin_wait"
    assert sender.world.service_counts(service)["live"] == 1
    sender.send(call(shape, "S", seq=9000))
    assert state(sender) == "syn"


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_reset_counts_where_the_next_packet_would_stand(sender: Sender, shape: Shape) -> None:
    service = sender.serve(shape)
    sender.send(call(shape, "S", seq=1000))
    sender.send(call(shape, "A", seq=1001, ack=1))
    sender.send(call(shape, "PA", b"x" * 100, seq=1001, ack=1))
    sender.send(call(shape, "R", seq=900))
    assert state(sender) == "established"
    sender.send(call(shape, "R", seq=5000))
    assert state(sender) == "closing"
    sender.send(call(shape, "PA", b"x" * 10, seq=1101, ack=1))
    assert state(sender) == "established"
    assert sender.world.service_counts(service)["live"] == 1
    sender.send(call(shape, "R", seq=1111))
    assert state(sender) == "reset"
    assert sender.world.service_counts(service)["live"] == 0


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_who_goes_on_is_taken_to_be_answered(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    sender.send(call(shape))
    assert "replied" not in sender.world.flows()[0].flags
    sender.send(call(shape))
    assert "replied" in sender.world.flows()[0].flags


# ── fragments and errors ──────────────────────────────────────────────────────────────────────────


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


def test_the_protocols_of_packets_in_packets() -> None:
    """What this file reckons with is what the RFCs say (2003, 2473)."""
    assert IN_IP == {4: 4, 6: 41}


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_the_endpoints_node_as_client_of_another_is_answered(sender: Sender, shape: Shape) -> None:
    """Its own packet comes back to it inside an outer header. The answer never leaves, and is
    translated where it comes in from the pod."""
    other = {4: "192.0.2.2", 6: "fd00:192::2"}[shape.family]
    own, (address, port) = WAY[shape.family], REMOTE[shape.family]
    receiver = Receiver(sender.world, shape)
    for flags in ("S", "A"):
        frame = packets.frame(shape, own, 40000, other, NODE_PORT, flags=flags)
        out = sender.send(wrapped(frame, shape.family, other, address))
        seen = model.tuple_of(out).sport
        assert seen != 40000
        assert out == model.rewrite(frame, dst=address, dport=port, sport=seen)
        answer = packets.frame(shape, address, port, own, seen, b"here", flags="SA")
        outcome = receiver.world.from_pod(answer)
        assert outcome.verdict == model.PASS
        wanted = model.rewrite(answer, src=other, sport=NODE_PORT, dport=40000)
        assert outcome.frame == wanted
    itself = packets.frame(shape, own, 40001, other, NODE_PORT)
    receiver.world.set_backends(receiver.service, [(own, 8080)], [(own, 8080)])
    outcome = sender.take(wrapped(itself, shape.family, other, own))
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"endpoint_is_node": 1})
