"""What happens when a map is full: docs/datapath.md, "When a map is full", row by row."""

from collections.abc import Iterator

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import SECOND, Conversation, serve
from tests.kernel.support.hairpin import Loop
from tests.kernel.support.packets import TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.uplink import Passage, node_port
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel
BUCKETS = 16
ROOM = BUCKETS * 8  # cells


@pytest.fixture(scope="module")
def tiny_world() -> Iterator[World]:
    """A table of 128 cells, which is 64 flows."""
    parts = ("cells4a", "cells6a", "states6a")
    made = World({"control4a": BUCKETS, "control6a": BUCKETS, **dict.fromkeys(parts, ROOM)})
    yield made
    made.close()


@pytest.fixture
def small(tiny_world: World) -> World:
    tiny_world.reset()
    return tiny_world


def _talks(world: World, shape: Shape, count: int) -> list[Conversation]:
    service = serve(world, shape)
    return [Conversation(world, shape, service, sport=20000 + n) for n in range(count)]


def _burst(world: World, talk: Conversation, count: int = 2000, again: int = 2) -> None:
    """SYNs or first datagrams from so many other ports, each sent `again` times."""
    frame = talk.request("S", b"x")
    for start in range(31000, 31000 + count, 100):
        frames = [model.rewrite(frame, sport=start + n) for n in range(100)]
        world.run_many("entry_from_pod", frames * again)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("silent", ["no data yet", "data both ways"])
def test_a_burst_of_handshakes_evicts_no_connection(
    small: World, shape: Shape, silent: str
) -> None:
    """From the client's ACK on it is established, though its backend may stay silent for long."""
    talks = [talk.open() for talk in _talks(small, shape, 30)]
    if silent != "no data yet":
        for talk in talks:
            talk.up("PA", b"x")
            talk.down("PA", b"y")
    small.age(100)  # those that are older go first, if they may
    _burst(small, talks[0])
    for talk in talks:
        talk.down("PA", b"so am I")
        talk.up("PA", b"still here")
        assert {flow.state for flow in talk.entries()} == {"established"}
    assert len(small.flow_table.read(shape.family)) <= ROOM


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_hairpin_connection_survives_a_burst(small: World, shape: Shape) -> None:
    """All four of its cells."""
    loop = Loop.start(small, shape, SECOND[shape.family])
    loop.request("S")
    loop.answer("SA")
    loop.request("A")
    small.age(100)
    _burst(small, Conversation(small, shape, serve(small, shape)))
    loop.answer("PA", b"the first word")
    loop.request("PA", b"thanks")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_what_is_over_makes_room_first(small: World, shape: Shape) -> None:
    """As many connections one after another as one likes, and a handshake beside them."""
    waits = Conversation(small, shape, serve(small, shape, address=SECOND[shape.family]), 30000)
    waits.up("S")
    for talk in _talks(small, shape, 300):
        talk.open().close_from_client()
    waits.down("SA")
    waits.up("A")
    assert {flow.state for flow in waits.entries()} == {"established"}
    assert len(small.flow_table.read(shape.family)) <= ROOM


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_table_is_full_of_connections(small: World, shape: Shape) -> None:
    """What cannot be added is dropped and counted; nothing is lost, nothing is mixed, and there is
    room again when some have ended."""
    talks: list[Conversation] = []
    service = serve(small, shape)
    refused = 0
    for number in range(100):
        talk = Conversation(small, shape, service, sport=20000 + number)
        outcome = small.from_pod(talk.request("S"))
        if outcome.verdict == model.DROP:
            assert outcome.reasons == {"flows_full": 1}
            refused += 1
            continue
        talk.open()
        talks.append(talk)
    assert len(talks) > 50
    assert refused > 10
    for talk in talks:
        talk.up("PA", b"x")
        talk.down("PA", b"y")
    assert len(small.flow_table.read(shape.family)) == 2 * len(talks)
    for talk in talks[:30]:
        talk.close_from_client()
    for talk in _talks(small, shape, 5):
        talk.sport += 5000
        talk.open()


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_handshake_that_was_evicted_is_retried(small: World, shape: Shape) -> None:
    """The client's next SYN finds a backend again."""
    late = Conversation(small, shape, serve(small, shape, address=SECOND[shape.family]), 30000)
    late.up("S")
    _burst(small, late)
    late.forget()
    late.seq -= 1
    late.up("S")
    late.down("SA")
    late.up("A")


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_udp_flows_push_out_the_oldest(small: World, shape: Shape) -> None:
    """An evicted one picks a backend anew; TCP is not touched."""
    tcp = shape._replace(protocol="tcp")
    connection = Conversation(small, tcp, serve(small, tcp)).open()
    talk = _talks(small, shape, 1)[0]
    talk.up(payload=b"x")
    small.age(10)
    _burst(small, talk)
    talk.forget()
    assert talk.up(payload=b"x").reasons.get("forwarded") == 1
    talk.down(payload=b"y")
    connection.up("PA", b"x")
    connection.down("PA", b"y")
    assert len(small.flow_table.read(shape.family)) <= ROOM


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_conversations_stay_while_questions_come_and_go(small: World, shape: Shape) -> None:
    """Datagrams that nobody answers push out one another, not what was answered and goes on."""
    talks = [talk.open() for talk in _talks(small, shape, 10)]
    for talk in talks:
        talk.up(payload=b"and")
        talk.down(payload=b"so on")
    small.age(10)
    _burst(small, talks[0], again=1)
    for talk in talks:
        assert talk.up(payload=b"x").reasons == {}
        talk.down(payload=b"y")


@pytest.mark.parametrize("shape", [*TCP_SHAPES, *UDP_SHAPES], ids=str)
def test_room_for_all_four_cells_or_for_none(small: World, shape: Shape) -> None:
    """Handshakes and questions by a node port: each of a flow's cells makes room, or none stays."""
    node_port(small, shape)
    for number in range(300):
        passage = Passage(small, shape, sport=20000 + number)
        passage.up("S")
        passage.down("SA")
    cells = small.flow_table.read(shape.family)
    rings: dict[int, int] = {}
    for cell in cells:
        rings[cell.generation] = rings.get(cell.generation, 0) + 1
    assert set(rings.values()) == {4}
    assert len(cells) > ROOM // 2
    words = small.array(f"control{shape.family}a").records.view("u1")
    assert (words != 0).sum() == len(cells), "nothing is left reserved"


@pytest.mark.parametrize("family", [4, 6])
def test_more_fragmented_datagrams_than_room(small: World, family: int) -> None:
    """The oldest are forgotten, and their later fragments wait in vain."""
    shape = Shape(family, "udp")
    talk = _talks(small, shape, 1)[0].open()
    firsts = [_fragment(talk, number, first=True) for number in range(1000)]
    verdicts = small.run_many("entry_from_pod", firsts)
    assert {verdict for verdict, _ in verdicts} == {model.PASS}
    newest = small.from_pod(_fragment(talk, 999, first=False))
    assert newest.verdict == model.PASS
    oldest = small.from_pod(_fragment(talk, 0, first=False))
    assert (oldest.verdict, oldest.reasons) == (model.DROP, {})


def _fragment(talk: Conversation, number: int, *, first: bool) -> bytes:
    frame = talk.request(payload=b"x" * 64)
    at = model.parse(frame)
    if at.family == 4:
        out = bytearray(frame)
        out[at.network + 4 : at.network + 6] = number.to_bytes(2, "big")
        out[at.network + 6 : at.network + 8] = (0x2000 if first else 8).to_bytes(2, "big")
        model.fix_ipv4_sum(out, at.network, at.transport)
        return bytes(out)
    header = bytes([17, 0]) + (1 if first else 64).to_bytes(2, "big")
    out = bytearray(frame[: at.transport]) + header + number.to_bytes(4, "big")
    out += frame[at.transport :]
    out[at.network + 4 : at.network + 6] = (len(frame) - at.transport + 8).to_bytes(2, "big")
    out[at.network + 6] = 44
    return bytes(out)
