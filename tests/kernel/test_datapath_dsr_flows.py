"""DSR: flows of which one direction alone is seen, and what happens to them while they live."""

from __future__ import annotations

from typing import cast

import pytest

from ebpf.flowevents import read_events
from ebpf.flowtable import FlowTable
from ebpf.maps.ring import Ring
from tests.kernel.support import model
from tests.kernel.support.dsr import (
    Receiver,
    Sender,
    call,
    node_port,
    outer_of,
    sender,
    wrapped,
)
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.uplink import REMOTE
from tests.kernel.support.world import NODE, World, beat

pytestmark = pytest.mark.kernel
__all__ = ["sender"]


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


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_its_age_is_known_though_it_has_half_the_room_for_it(sender: Sender, shape: Shape) -> None:
    world = sender.world
    sender.serve(shape)
    opened = beat()
    sender.send(call(shape))
    table = FlowTable(str(shape.family), world.maps, world.bundle.enums, world.programs.fds)
    (cell,) = table.view()
    assert int(cell["opened"]) - opened in (-1, 0, 1)


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_who_goes_on_is_taken_to_be_answered(sender: Sender, shape: Shape) -> None:
    sender.serve(shape)
    sender.send(call(shape))
    assert "replied" not in sender.world.flows()[0].flags
    sender.send(call(shape))
    assert "replied" in sender.world.flows()[0].flags


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_who_listens_hears_of_its_beginning_and_end(sender: Sender, shape: Shape) -> None:
    world = sender.world
    service = sender.serve(shape)
    ring = cast(Ring, world.maps["flow_events"])
    read_events(ring)
    opened = beat()
    world.configure(events_until=opened + 100)
    sender.send(call(shape, "S", seq=1000))
    sender.send(call(shape, "A", seq=1001, ack=1))
    sender.send(call(shape, "R", seq=1001))
    world.forget_flows()
    world.configure(events_until=0)
    first, last = read_events(ring)
    assert [int(e["what"]) for e in (first, last)] == [
        world.flag("EVENT_OPENED"),
        world.flag("EVENT_ENDED"),
    ]
    for event in (first, last):
        assert int(event["kind"]) == world.flag("CELL_DSR")
        assert int(event["service"]) == service.id
        assert int(event["opened"]) - opened in (-1, 0, 1)
    assert int(last["why"]) == world.flag("END_RESET")
    assert (int(last["packets_in"]), int(last["packets_out"])) == (3, 0)
