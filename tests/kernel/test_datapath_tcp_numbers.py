"""Sequence numbers: what a FIN or RST that cannot be right does to a flow, which is nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.support.conversation import Conversation, serve
from tests.kernel.support.packets import TCP_SHAPES, Shape
from tests.kernel.support.world import TIMEOUTS, Outcome, World

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)]
SIDES = pytest.mark.parametrize("side", ["client", "backend"])
WINDOW = 1 << 24  # PLAUSIBLE_WINDOW
# From what the other side acknowledged.
IMPOSSIBLE = [-1, -1000, -(1 << 20), WINDOW + 1000, 1 << 30, (1 << 31) - 1, 1 << 31]


def send(talk: Conversation, side: str) -> Callable[..., Outcome]:
    return talk.up if side == "client" else talk.down


def other(talk: Conversation, side: str) -> Callable[..., Outcome]:
    return talk.down if side == "client" else talk.up


def number(talk: Conversation, side: str) -> int:
    """What comes next from this side, all before it acknowledged."""
    return talk.seq if side == "client" else talk.peer_seq


def states(world: World) -> set[str]:
    return {flow.state for flow in world.flows()}


def talking(world: World, shape: Shape) -> Conversation:
    """Each side has acknowledged all that the other said."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    talk.up("PA", b"request")
    talk.down("PA", b"answer")
    talk.up("A")
    talk.down("A")
    return talk


@SIDES
@pytest.mark.parametrize("flags", ["R", "RA", "FA", "F"])
def test_what_cannot_be_right_changes_nothing(
    world: World, shape: Shape, side: str, flags: str
) -> None:
    """It is passed on, the ends know what to make of it. An idle connection lives on."""
    talk = talking(world, shape)
    for off in IMPOSSIBLE:
        send(talk, side)(flags, seq=(number(talk, side) + off) % (1 << 32))
        assert states(world) == {"established"}
    assert not any(flow.flags & {"fin", "rst"} for flow in world.flows())
    world.age(TIMEOUTS["established_timeout"] - 60)
    assert talk.up("S").reasons == {}, "the flow is known as it was"


@SIDES
def test_a_right_reset_ends_the_flow(world: World, shape: Shape, side: str) -> None:
    talk = talking(world, shape)
    send(talk, side)("R")
    assert states(world) == {"reset"}
    # What the other side had under way revives nothing.
    for flags in ("PA", "FA"):
        other(talk, side)(flags, b"late")
        assert states(world) == {"reset"}


@SIDES
def test_who_goes_on_was_not_reset(world: World, shape: Shape, side: str) -> None:
    """The RST was right for us, but the other end had received more by then: it did not count."""
    talk = talking(world, shape)
    send(talk, side)("R")
    send(talk, side)("PA", b"I am here")
    assert states(world) == {"established"}
    talk.close_from_client()
    assert states(world) == {"time_wait"}


@SIDES
def test_a_reset_behind_data_under_way_shortens_to_half_closed(
    world: World, shape: Shape, side: str
) -> None:
    talk = talking(world, shape)
    send(talk, side)("PA", b"not acknowledged yet")
    send(talk, side)("R")
    assert states(world) == {"closing"}
    world.age(TIMEOUTS["closing_timeout"] - 60)
    other(talk, side)("A")  # RFC 5961's challenge, say
    assert states(world) == {"established"}


def test_a_handshake_ends_by_the_ack_that_fits(world: World, shape: Shape) -> None:
    """Who does not see the backend's SYN cannot acknowledge it; the client's ACK still counts."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    talk.down("SA")
    for off in (-1, 1000, -100000, 1 << 31):
        for flags in ("A", "PA", "FA"):
            talk.up(flags, b"x", seq=talk.seq, ack=(talk.peer_seq + off) % (1 << 32))
            assert states(world) == {"syn"}
    talk.down("SA", seq=talk.peer_seq - 1)
    talk.up("A")
    assert states(world) == {"established"}


def test_a_handshake_with_data_of_the_backends(world: World, shape: Shape) -> None:
    """TCP Fast Open: the client acknowledges the backend's SYN and what came right behind it."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    talk.down("SA")
    talk.down("PA", b"answer")
    talk.up("A")
    assert states(world) == {"established"}


def test_where_no_syn_ack_passes_any_ack_ends_the_handshake(world: World, shape: Shape) -> None:
    """Answers that take another way."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    talk.up("A", ack=4711)
    assert states(world) == {"established"}


def test_a_reset_in_the_handshake(world: World, shape: Shape) -> None:
    """A port nobody listens on acknowledges the SYN; anything else is a stray, or forged."""
    talk = Conversation(world, shape, serve(world, shape))
    talk.up("S")
    for flags, ack in (("R", 0), ("RA", talk.seq + 1000), ("RA", talk.seq - 1)):
        talk.down(flags, seq=0, ack=ack)
        assert states(world) == {"syn"}
    talk.up("R", seq=talk.seq + 5)
    assert states(world) == {"syn"}
    talk.down("RA", seq=0)
    assert states(world) == {"reset"}
    talk = Conversation(world, shape, talk.service, sport=40001)
    talk.up("S")
    talk.down("SA")
    talk.up("R")
    assert {flow.state for flow in talk.entries()} == {"reset"}


@SIDES
def test_a_reset_that_answers_a_fin(world: World, shape: Shape, side: str) -> None:
    """Who has no such connection takes the FIN's own acknowledgement number. What that side last
    acknowledged is not kept while the FIN waits; minutes will do."""
    talk = talking(world, shape)
    send(talk, side)("FA")
    other(talk, side)("R", seq=number(talk, "backend" if side == "client" else "client"))
    assert states(world) == {"fin_wait"}


@SIDES
def test_a_reset_after_a_half_close(world: World, shape: Shape, side: str) -> None:
    """By either side; and a wrong one still changes nothing."""
    for by in ("client", "backend"):
        talk = talking(world, shape)
        send(talk, side)("FA")
        other(talk, side)("A")
        send(talk, by)("R", seq=(number(talk, by) - 1000) % (1 << 32))
        assert states(world) == {"closing"}
        send(talk, by)("R")
        assert states(world) == {"reset"}
        world.reset()


@SIDES
def test_a_wrong_fin_does_not_hide_the_right_one(world: World, shape: Shape, side: str) -> None:
    """One that could be right, from somebody who guessed: what counts comes later."""
    talk = talking(world, shape)
    send(talk, side)("FA", seq=(number(talk, side) + 5000) % (1 << 32))
    assert states(world) == {"closing"}
    send(talk, side)("PA", b"still here")
    other(talk, side)("A")
    send(talk, side)("FA")
    other(talk, side)("A")
    assert states(world) == {"closing"}
    other(talk, side)("FA")
    send(talk, side)("A")
    assert states(world) == {"time_wait"}


@SIDES
def test_a_fin_behind_data_under_way(world: World, shape: Shape, side: str) -> None:
    """Megabytes may not be acknowledged yet: it closes, if not for minutes only."""
    talk = talking(world, shape)
    start = number(talk, side)
    send(talk, side)("FA", seq=(start + 3_000_000) % (1 << 32))
    assert states(world) == {"closing"}
    end = (start + 3_000_001) % (1 << 32)
    other(talk, side)("FA", ack=end)
    if side == "client":
        talk.up("A", seq=end)
    else:
        talk.down("A", seq=end)
    assert states(world) == {"time_wait"}


@SIDES
def test_a_fin_sent_again_with_its_data_is_certain(world: World, shape: Shape, side: str) -> None:
    """The kernel joins what it sends again: the segment begins right behind the acknowledged."""
    talk = talking(world, shape)
    start = number(talk, side)
    send(talk, side)("PA", b"lost")
    send(talk, side)("FA")
    assert states(world) == {"closing"}
    send(talk, side)("FPA", b"lost", seq=start)
    assert states(world) == {"fin_wait"}


def test_each_direction_writes_its_own_flags(world: World, shape: Shape) -> None:
    """Two CPUs at once would lose what both write."""
    talk = talking(world, shape)

    def flags(reply: bool) -> frozenset[str]:
        (entry,) = (flow for flow in world.flows() if flow.reply == reply)
        return entry.flags

    steps: list[tuple[Callable[..., Outcome], str, dict[str, int]]] = [
        (talk.up, "FA", {}),
        (talk.down, "PA", {}),
        (talk.up, "A", {}),
        (talk.down, "FA", {}),
        (talk.down, "RA", {"seq": 5}),
        (talk.up, "A", {}),
    ]
    for send, kind, fields in steps:
        others = send == talk.up
        before = flags(others)
        send(kind, **fields)
        assert flags(others) == before


def test_a_close_that_lost_its_end_takes_minutes(world: World, shape: Shape) -> None:
    """Both FINs, and the acknowledgements crossed unseen or were lost."""
    talk = talking(world, shape)
    fin, peer_fin = talk.seq, talk.peer_seq
    talk.up("FA", ack=peer_fin)
    talk.down("FA", ack=fin)
    assert states(world) == {"fin_wait"}
    world.age(TIMEOUTS["fin_wait_timeout"] + 2)
    talk.forget()
    assert talk.up("S", seq=fin + 100000).reasons == {"forwarded": 1}
