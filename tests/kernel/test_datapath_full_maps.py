"""What happens when a map is full: docs/datapath.md, "When a map is full", row by row."""

from collections.abc import Iterator

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import SECOND, Conversation, serve
from tests.kernel.support.flows import Flow
from tests.kernel.support.hairpin import Loop
from tests.kernel.support.packets import TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel
ROOM = 64
LIMIT = 48
LRU_ROOM = 1024


@pytest.fixture(scope="module")
def tiny_world() -> Iterator[World]:
    """64 entries in the plain tables, which handshakes leave alone from 48 on.

    The LRU tables are larger: below some hundred entries the kernel's LRU is none, since each CPU
    keeps that many aside.
    """
    sizes = {"flows4": ROOM, "flows6": ROOM, "flows4_lru": LRU_ROOM, "flows6_lru": LRU_ROOM}
    made = World(sizes)
    yield made
    made.close()


@pytest.fixture
def small(tiny_world: World) -> World:
    tiny_world.reset()
    tiny_world.configure(flow_limit=LIMIT)
    return tiny_world


def _talks(world: World, shape: Shape, count: int) -> list[Conversation]:
    service = serve(world, shape)
    return [Conversation(world, shape, service, sport=20000 + n) for n in range(count)]


def _burst(world: World, talk: Conversation, count: int = 4000) -> None:
    """SYNs or first datagrams from so many other ports, each sent twice: what is used again counts
    as recently used, and pushes out what is not."""
    frame = talk.request("S", b"x")
    for start in range(31000, 31000 + count, 100):
        frames = [model.rewrite(frame, sport=start + n) for n in range(100)]
        world.run_many("entry_from_pod", frames * 2)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_burst_of_handshakes_evicts_no_connection(small: World, shape: Shape) -> None:
    talks = [talk.open() for talk in _talks(small, shape, 15)]
    _burst(small, talks[0])
    for talk in talks:
        talk.up("PA", b"still here")
        talk.down("PA", b"so am I")
    table = f"flows{shape.family}"
    assert small.flow_table.count(table) <= ROOM
    assert small.flow_table.count(f"{table}_lru") <= LRU_ROOM


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_beyond_the_limit_handshakes_are_in_the_other_table(small: World, shape: Shape) -> None:
    """And move to the plain one, both directions, when the handshake is over."""
    for talk in _talks(small, shape, LIMIT // 2):
        talk.open()
    late = Conversation(small, shape, serve(small, shape, address=SECOND[shape.family]), 30000)
    late.up("S")
    assert [f.lru for f in _entries(small, late)] == [True, True]
    late.down("SA")
    late.up("A")
    late.down("A")
    assert [f.lru for f in _entries(small, late)] == [False, False]


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("silent", ["no data yet", "data both ways"])
def test_a_connection_beyond_the_limit_survives_a_burst(
    small: World, shape: Shape, silent: str
) -> None:
    """From the client's ACK on it is established, though its backend may stay silent for long."""
    for talk in _talks(small, shape, LIMIT // 2):
        talk.open()
    late = Conversation(small, shape, serve(small, shape, address=SECOND[shape.family]), 30000)
    late.open()
    if silent != "no data yet":
        late.up("PA", b"x")
        late.down("PA", b"y")
    _burst(small, late)
    late.down("PA", b"the first word")
    late.up("PA", b"thanks")
    late.close_from_client()
    assert {f.state for f in _entries(small, late)} == {"time_wait"}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_hairpin_connection_beyond_the_limit_survives_a_burst(small: World, shape: Shape) -> None:
    """All four of its entries move to the plain table."""
    for talk in _talks(small, shape, LIMIT // 2):
        talk.open()
    loop = Loop.start(small, shape, SECOND[shape.family])
    loop.request("S")
    loop.answer("SA")
    loop.request("A")
    _burst(small, Conversation(small, shape, serve(small, shape)))
    loop.answer("PA", b"the first word")
    loop.request("PA", b"thanks")


def _entries(world: World, talk: Conversation) -> list[Flow]:
    return [f for f in world.flows(talk.shape.family) if talk.sport in (f.sport, f.dport)]


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_plain_table_is_full(small: World, shape: Shape) -> None:
    """Established connections stay in the other table then; nothing is lost, nothing is mixed."""
    talks = [talk.open() for talk in _talks(small, shape, 24)]
    service = talks[0].service
    more = [Conversation(small, shape, service, sport=21000 + n) for n in range(16)]
    for talk in more:
        talk.open()
    for talk in (*talks, *more):
        talk.up("PA", b"x")
        talk.down("PA", b"y")
    assert small.flow_table.count(f"flows{shape.family}") <= ROOM


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_room_comes_back_when_connections_end(small: World, shape: Shape) -> None:
    """The programs' own count of entries falls as it rose. What ended lingers no longer than until
    the next one ends, when room is short."""
    table, field = f"flows{shape.family}", f"tcp_entries{shape.family}"
    for _ in range(3):
        talks = [talk.open() for talk in _talks(small, shape, 30)]
        for talk in talks:
            talk.close_from_client()
        entries = small.flow_table.count(table)
        assert int(small.array("table_state").records[field][0]) == entries <= LIMIT
        assert {flow.state for flow in small.flows()} == {"time_wait"}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_handshake_that_was_evicted_is_retried(small: World, shape: Shape) -> None:
    """The client's next SYN finds a backend again."""
    for talk in _talks(small, shape, LIMIT // 2):
        talk.open()
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
    tcp = Conversation(
        small, shape._replace(protocol="tcp"), serve(small, shape._replace(protocol="tcp"))
    ).open()
    talk = _talks(small, shape, 1)[0]
    talk.up(payload=b"x")
    _burst(small, talk)
    assert small.flow_table.count(f"flows{shape.family}_lru") <= LRU_ROOM
    talk.forget()
    assert talk.up(payload=b"x").reasons.get("forwarded") == 1
    talk.down(payload=b"y")
    tcp.up("PA", b"x")
    tcp.down("PA", b"y")


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_a_udp_flow_that_lost_one_entry_works(small: World, shape: Shape) -> None:
    """The LRU forgets entries one by one, whichever it likes."""
    for victim in (True, False):
        talk = _talks(small, shape, 1)[0].open()
        for flow in small.flows():
            if flow.reply == victim:
                small.flow_table.delete(flow)
        small.age(2)
        talk.forget()
        talk.up(payload=b"x")
        talk.down(payload=b"y")
        small.reset()


@pytest.mark.parametrize("family", [4, 6])
def test_no_room_in_either_table(small: World, family: int) -> None:
    """Live TCP connections everywhere: a new one may push out a handshake, nothing else, and what
    cannot be added is dropped and counted."""
    shape = Shape(family, "tcp")
    small.configure(flow_limit=ROOM * 10)
    talks = _talks(small, shape, 500)
    before = small.counts()["flows_full"]
    results = small.run_many("entry_from_pod", [talk.request("S") for talk in talks])
    verdicts = [verdict for verdict, _ in results]
    assert set(verdicts) <= {model.PASS, model.DROP}
    assert small.counts()["flows_full"] - before == verdicts.count(model.DROP)
    assert small.flow_table.count(f"flows{family}") <= ROOM


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
