"""UDP and SCTP flows: they stay while their backend serves, and move on when it stops."""

import time

import pytest

from tests.kernel.support import checks, model
from tests.kernel.support.conversation import BACKENDS, PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import UDP_SHAPES, Shape
from tests.kernel.support.world import TIMEOUTS, Endpoint, World, beat

SCTP_SHAPES = [Shape(4, "sctp"), Shape(6, "sctp")]
DATAGRAMS = pytest.mark.parametrize("shape", UDP_SHAPES + SCTP_SHAPES, ids=str)
UDP = pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)

pytestmark = pytest.mark.kernel


@DATAGRAMS
def test_a_flow_keeps_its_backend(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    for number in range(30):
        talk.up(payload=bytes(number))
        talk.down(payload=bytes(number))
    assert len(world.flows()) == 2
    assert world.service_counts(talk.service)["connections"] == 1


@DATAGRAMS
def test_moves_on_when_its_backend_stops_serving(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    old = talk.backend
    assert old
    rest = [e for e in talk.service.backends if e != old]
    world.set_backends(talk.service, rest)
    talk.forget()
    assert talk.up(payload=b"x").reasons == {"forwarded": 1, "flow_moved": 1}
    assert talk.backend in rest
    chosen = talk.backend
    for _ in range(10):
        talk.down(payload=b"y")
        assert talk.up(payload=b"x").reasons == {}
    assert talk.backend == chosen


@DATAGRAMS
def test_moves_on_when_another_service_has_the_address(world: World, shape: Shape) -> None:
    """The old one's backend goes on serving. Asked once per beat."""
    family = shape.family
    deadline = time.monotonic() + 60
    while True:
        began = beat()
        loser = world.add_service(SERVICE[family], PORT, shape.protocol, _backends(shape)[:1])
        talk = Conversation(world, shape, loser).open()
        owner = world.add_service(SERVICE[family], PORT, shape.protocol, _backends(shape)[1:2])
        outcome = world.from_pod(talk.request(payload=b"x"))
        if beat() == began:  # else it may have been asked already
            break
        assert time.monotonic() < deadline, "never within a beat"
        world.reset()
    assert talk.backend
    assert (outcome.reasons, model.tuple_of(outcome.frame).dst) == (
        {},
        model.packed(talk.backend[0]),
    )
    world.age(1)
    talk.service = owner
    talk.forget()
    assert talk.up(payload=b"x").reasons == {"forwarded": 1, "flow_moved": 1}
    talk.down(payload=b"y")
    world.age(1)
    assert talk.up(payload=b"x").reasons == {}


@DATAGRAMS
def test_stays_when_other_backends_change(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    world.set_backends(talk.service, [talk.backend])
    assert talk.up(payload=b"x").reasons == {}
    world.set_backends(talk.service, [talk.backend, *_others(talk)])
    for _ in range(10):
        assert talk.up(payload=b"x").reasons == {}


def _others(talk: Conversation) -> list[Endpoint]:
    return _backends(talk.shape)


def _backends(shape: Shape) -> list[Endpoint]:
    if shape.protocol == "sctp":
        return [(ip, PORT) for ip, _ in BACKENDS[shape.family]]
    return BACKENDS[shape.family]


@DATAGRAMS
def test_moves_on_when_its_backend_id_has_another_owner(world: World, shape: Shape) -> None:
    """Another generation, serving: still not this flow's backend."""
    service = serve(world, shape, count=1)
    talk = Conversation(world, shape, service).open()
    assert talk.backend
    other = ({4: "10.9.9.9", 6: "fd00:9::9"}[shape.family], talk.backend[1])
    world.reuse_backend_id(service, talk.backend, other)
    talk.forget()
    assert talk.up(payload=b"x").reasons == {"forwarded": 1, "flow_moved": 1}
    assert talk.backend == other
    talk.down(payload=b"y")


@DATAGRAMS
def test_refused_when_the_service_lost_its_last_endpoint(world: World, shape: Shape) -> None:
    """Rule 27: it does not go on to the endpoint that stopped."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.set_backends(talk.service, [])
    frame = talk.request(payload=b"x")
    for _ in range(3):
        outcome = world.from_pod(frame)
        assert outcome.verdict == model.REDIRECT
        assert outcome.reasons["no_endpoint"] == 1
        checks.assert_unreachable(frame, outcome.frame)


@DATAGRAMS
def test_refused_when_its_port_is_gone(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.remove_frontend(SERVICE[shape.family], PORT, shape.number)
    world.set_backends(talk.service, [])
    frame = talk.request(payload=b"x")
    outcome = world.from_pod(frame)
    assert outcome.reasons["unknown_port"] == 1
    checks.assert_unreachable(frame, outcome.frame)


@DATAGRAMS
def test_dropped_when_its_service_is_gone(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.remove_service(talk.service)
    outcome = world.from_pod(talk.request(payload=b"x"))
    assert outcome.verdict == model.DROP
    assert outcome.reasons["unallocated"] == 1


@DATAGRAMS
def test_goes_on_when_the_service_comes_back(world: World, shape: Shape) -> None:
    """Empty and filled again, as while a single pod restarts."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.set_backends(talk.service, [])
    assert world.from_pod(talk.request(payload=b"x")).verdict == model.REDIRECT
    world.set_backends(talk.service, _others(talk)[:1])
    talk.forget()
    talk.up(payload=b"x")
    talk.down(payload=b"y")


@UDP
def test_unanswered_flow_times_out(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape))
    talk.up(payload=b"x")
    world.age(TIMEOUTS["datagram_timeout"] - 60)
    assert talk.up(payload=b"x").reasons == {}
    world.age(TIMEOUTS["datagram_timeout"] + 2)
    talk.forget()
    assert talk.up(payload=b"x").reasons["forwarded"] == 1
    talk.down(payload=b"y")


@UDP
def test_answered_flow_has_longer(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    world.age(2)
    talk.down(payload=b"y")
    world.age(2)
    talk.up(payload=b"x")
    world.age(TIMEOUTS["datagram_stream_timeout"] - 60)
    assert talk.up(payload=b"x").reasons == {}
    world.age(TIMEOUTS["datagram_stream_timeout"] + 2)
    talk.forget()
    assert talk.up(payload=b"x").reasons["forwarded"] == 1


@UDP
def test_answers_alone_keep_a_flow_alive(world: World, shape: Shape) -> None:
    """A subscriber that only listens: the client's direction is idle far beyond the timeout."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    for _ in range(4):
        world.age(TIMEOUTS["datagram_stream_timeout"] // 2)
        talk.down(payload=b"news")
    assert talk.up(payload=b"x").reasons == {}


@UDP
def test_another_flow_by_chance_after_the_timeout(world: World, shape: Shape) -> None:
    """Beginning anew means choosing anew: three backends are all seen."""
    talk = Conversation(world, shape, serve(world, shape))
    seen = set()
    for _ in range(40):
        talk.forget()
        talk.up(payload=b"x")
        seen.add(talk.backend)
        world.age(TIMEOUTS["datagram_timeout"] + 2)
    assert len(seen) == 3


@UDP
def test_a_flow_without_checksum_moves_too(world: World, shape: Shape) -> None:
    """Checksum 0 over IPv4 stays 0; over IPv6 there is no such thing."""
    if shape.family == 4:
        shape = shape._replace(zero=True)
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    world.set_backends(talk.service, [e for e in BACKENDS[shape.family] if e != talk.backend])
    talk.forget()
    frame = talk.up(payload=b"x").frame
    assert (frame[40:42] == b"\0\0") == shape.zero
