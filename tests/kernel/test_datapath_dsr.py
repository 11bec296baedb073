"""DSR: what the node that is called sends on, and what the endpoint's node makes of it."""

from __future__ import annotations

import pytest

from tests.kernel.support import model, packets
from tests.kernel.support.dsr import (
    BALANCER,
    DSR_PORT,
    EACH,
    FORMS,
    IN_IP,
    OVERHEAD,
    SUMS,
    WAY,
    Receiver,
    Sender,
    call,
    node_port,
    outer_of,
    sender,
    wrapped,
)
from tests.kernel.support.packets import PLAIN, UDP_SHAPES, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE
from tests.kernel.support.world import NODE, World

pytestmark = pytest.mark.kernel
__all__ = ["sender"]


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


def test_the_protocols_of_packets_in_packets() -> None:
    """What this file reckons with is what the RFCs say (2003, 2473)."""
    assert IN_IP == {4: 4, 6: 41}
