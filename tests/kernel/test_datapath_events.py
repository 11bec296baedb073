"""What programs tell while somebody listens: each new flow, each end once, each packet turned away;
and that the same happens to packets whether anybody does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ebpf.flowevents import read_events
from ebpf.maps.base import Records
from ebpf.maps.ring import Ring
from tests.kernel.support import model, packets
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, Shape
from tests.kernel.support.world import World, beat, mapped

pytestmark = pytest.mark.kernel


@pytest.fixture
def heard(world: World) -> Iterator[World]:
    """Somebody listens for a while; what the ring had no room for is nothing."""
    told(world)
    world.configure(events_until=beat() + 100)
    yield world
    world.configure(events_until=0)
    told(world)
    assert not world.array("cpus").records["unheard"].any()


def told(world: World) -> Records:
    return read_events(cast(Ring, world.maps["flow_events"]))


def only(events: Records) -> dict[str, Any]:
    """The one event there is."""
    assert len(events) == 1
    names = events.dtype.names or ()
    return {n: events[n][0].tobytes() if events[n].ndim > 1 else int(events[n][0]) for n in names}


def check(event: dict[str, Any], world: World, talk: Conversation, what: str, why: str) -> None:
    assert event["what"] == world.flag(what)
    assert event["why"] == (world.flag(why) if why else 0)
    assert (event["src"], event["dst"]) == (mapped(talk.client), mapped(talk.address))
    assert (event["sport"], event["dport"]) == (socket.htons(talk.sport), socket.htons(PORT))
    assert event["service"] == talk.service.id
    assert event["process"] == 0


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_new_flow_is_told_before_anything_else_of_it(heard: World, shape: Shape) -> None:
    talk = Conversation(heard, shape, serve(heard, shape))
    first = talk.request("S", b"x" * 10)
    assert heard.from_pod(first).reasons == {"forwarded": 1}
    event = only(told(heard))
    check(event, heard, talk, "EVENT_OPENED", "")
    (chosen,) = (e for e in talk.service.backends if mapped(e[0]) == event["addr"])
    assert event["port"] == socket.htons(chosen[1])
    assert event["backend"] & heard.flag("BACKEND_ID_MASK") == talk.service.backends[chosen]
    assert (event["packets_in"], event["packets_out"]) == (1, 0)
    assert event["bytes_in"] == len(first) - 14
    assert event["opened"] == event["seen"]
    assert heard.from_pod(talk.request("S", b"again")).verdict == model.PASS
    assert len(told(heard)) == 0, "the flow is known"


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("close", ["client", "backend"])
def test_an_end_is_told_once_when_both_sides_closed(heard: World, shape: Shape, close: str) -> None:
    talk = Conversation(heard, shape, serve(heard, shape)).open()
    assert len(told(heard)) == 1
    getattr(talk, f"close_from_{close}")()
    event = only(told(heard))
    check(event, heard, talk, "EVENT_ENDED", "END_CLOSED")
    counts = heard.service_counts(talk.service)
    for name in ("packets_in", "bytes_in", "packets_out", "bytes_out"):
        assert event[name] == counts[name], name
    heard.forget_flows()
    assert len(told(heard)) == 0, "it has been told"


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_reset_ends_a_flow(heard: World, shape: Shape) -> None:
    talk = Conversation(heard, shape, serve(heard, shape)).open()
    told(heard)
    talk.up("R")
    check(only(told(heard)), heard, talk, "EVENT_ENDED", "END_RESET")
    heard.forget_flows()
    assert len(told(heard)) == 0


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_what_ends_while_it_is_open_is_told_by_whoever_ends_it(heard: World, shape: Shape) -> None:
    talk = Conversation(heard, shape, serve(heard, shape))
    talk.up("S", b"x")
    told(heard)
    heard.forget_flows()
    check(only(told(heard)), heard, talk, "EVENT_ENDED", "END_CLOSED")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
@pytest.mark.parametrize("reason", ["no_endpoint", "no_local_endpoint", "unknown_port"])
def test_what_goes_no_further_is_told_and_fares_as_before(
    heard: World, shape: Shape, reason: str
) -> None:
    service = serve(heard, shape, count=0)
    if reason == "no_local_endpoint":
        heard.set_backends(service, [], drop=True)
    talk = Conversation(heard, shape, service)
    if reason == "unknown_port":
        service.port += 1
    frame = talk.request("S", b"hello")
    outcome = heard.from_pod(frame)
    event = only(told(heard))
    assert event["what"] == heard.flag("EVENT_TURNED_AWAY")
    assert event["why"] == heard.flag(f"REASON_{reason.upper()}")
    assert (event["src"], event["dst"]) == (mapped(talk.client), mapped(talk.address))
    assert event["dport"] == socket.htons(service.port)
    assert event["service"] == (0 if reason == "unknown_port" else service.id)
    assert (event["packets_in"], event["bytes_in"]) == (1, len(frame) - 14)
    heard.configure(events_until=0)
    again = heard.from_pod(frame)
    assert len(told(heard)) == 0
    assert (outcome.verdict, outcome.reasons) == (again.verdict, again.reasons) != (0, {})
    # An answer's IPv4 identification is nobody's business; the rest is the same.
    assert outcome.frame == again.frame


@pytest.mark.parametrize("family", [4, 6])
def test_what_the_first_program_drops_is_told(heard: World, family: int) -> None:
    """Before anything was saved for others."""
    unallocated, client = {4: "10.96.200.200", 6: "fd00:96::c8c8"}[family], CLIENT[family]
    frame = packets.frame(Shape(family), client, 1234, unallocated, 99, b"", flags="S", seq=1)
    assert heard.from_pod(frame).reasons == {"unallocated": 1}
    event = only(told(heard))
    assert event["why"] == heard.flag("REASON_UNALLOCATED")
    assert (event["src"], event["dst"]) == (mapped(client), mapped(unallocated))
    assert (event["sport"], event["dport"]) == (socket.htons(1234), socket.htons(99))
    assert event["proto"] == 6


def test_a_masqueraded_flow_is_told_once(heard: World) -> None:
    """A pod reaches itself: four cells."""
    pod = CLIENT[4]
    service = heard.add_service(SERVICE[4], PORT, "tcp", [(pod, 8080)])
    talk = Conversation(heard, Shape(4), service, client=pod)
    assert heard.from_pod(talk.request("S")).reasons == {"forwarded": 1}
    event = only(told(heard))
    check(event, heard, talk, "EVENT_OPENED", "")
    assert event["kind"] & heard.flag("CELL_MASQUERADED")
    heard.forget_flows()
    assert only(told(heard))["what"] == heard.flag("EVENT_ENDED")


def test_who_stopped_renewing_hears_nothing(world: World) -> None:
    told(world)
    for until in (0, beat() - 1, (beat() - 1000) % (1 << 32)):
        world.configure(events_until=until)
        talk = Conversation(world, Shape(4), serve(world, Shape(4)))
        talk.up("S")
        world.forget_flows()
        assert len(told(world)) == 0
        world.reset()


def test_a_full_ring_changes_nothing_for_packets(world: World) -> None:
    """And every event it had no room for is counted."""
    told(world)
    world.configure(events_until=beat() + 100)
    ring = cast(Ring, world.maps["flow_events"])
    talk = Conversation(world, Shape(4), serve(world, Shape(4), count=0))
    frame = talk.request("S")
    room = ring.max_entries // 128
    verdicts = {v for v, _ in world.run_many("entry_from_pod", [frame] * (room + 500))}
    assert verdicts == {model.REDIRECT}
    unheard = int(world.array("cpus").records["unheard"].sum())
    world.configure(events_until=0)
    assert len(told(world)) + unheard == room + 500
    assert unheard >= 500
    world.array("cpus").records["unheard"] = 0
