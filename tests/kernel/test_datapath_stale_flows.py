"""A SYN on a flow of an earlier connection: what is left of that never decides about a new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.support import model
from tests.kernel.support.conversation import BACKENDS, SECOND, Conversation, serve
from tests.kernel.support.packets import TCP_SHAPES, Shape
from tests.kernel.support.world import Service, World

pytestmark = [pytest.mark.kernel, pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)]

STATES: dict[str, Callable[[Conversation], object]] = {
    "opening": lambda talk: talk.up("S"),
    "answered": lambda talk: (talk.up("S"), talk.down("SA")),
    "established": lambda talk: talk.open(),
    "in use": lambda talk: (talk.open(), talk.up("PA", b"x"), talk.down("PA", b"y")),
    "client closed": lambda talk: (talk.open(), talk.up("FA")),
    "client closed, known": lambda talk: (talk.open(), talk.up("FA"), talk.down("A")),
    "backend closed": lambda talk: (talk.open(), talk.down("FA")),
    "backend closed, known": lambda talk: (talk.open(), talk.down("FA"), talk.up("A")),
    "client closed behind data": lambda talk: (talk.open(), talk.up("PA", b"x"), talk.up("FA")),
    "perhaps reset": lambda talk: (talk.open(), talk.down("PA", b"x"), talk.down("R")),
}


def leave(world: World, service: Service, old: object) -> None:
    family = 6 if ":" in service.addresses[0] else 4
    world.set_backends(service, [e for e in BACKENDS[family] if e != old])


@pytest.mark.parametrize("state", STATES)
def test_its_backend_left(world: World, shape: Shape, state: str) -> None:
    talk = Conversation(world, shape, serve(world, shape))
    STATES[state](talk)
    old = talk.backend
    leave(world, talk.service, old)
    again = Conversation(world, shape, talk.service, seq=9_000_000)
    assert again.up("S").reasons == {"forwarded": 1}
    assert again.backend != old
    again.down("SA")
    again.up("A")
    assert again.state == "established"
    again.up("PA", b"x")
    again.down("PA", b"y")
    again.close_from_client()
    assert len(world.flows()) == 2
    # Of a backend that closed first the tuple may rest.
    assert world.noted() <= 1


@pytest.mark.parametrize("state", STATES)
def test_its_backend_left_and_its_id_is_anothers(world: World, shape: Shape, state: str) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=1))
    STATES[state](talk)
    assert talk.backend
    world.reuse_backend_id(talk.service, talk.backend, BACKENDS[shape.family][1])
    again = Conversation(world, shape, talk.service, seq=9_000_000)
    assert again.up("S").reasons == {"forwarded": 1}
    assert again.backend == BACKENDS[shape.family][1]


@pytest.mark.parametrize("state", STATES)
def test_its_backend_serves_another_service_now(world: World, shape: Shape, state: str) -> None:
    """The address is what it was; the new connection must not go there."""
    talk = Conversation(world, shape, serve(world, shape))
    STATES[state](talk)
    old = talk.backend
    assert old
    leave(world, talk.service, old)
    world.add_service(SECOND[shape.family], 80, "tcp", [old])
    again = Conversation(world, shape, talk.service, seq=9_000_000)
    again.up("S")
    assert again.backend != old


def test_nobody_serves_any_more(world: World, shape: Shape) -> None:
    """The new connection is refused at once; the old one's packets still follow their flow."""
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    world.set_backends(talk.service, [])
    talk.up("PA", b"still here")
    talk.down("PA", b"yes")
    outcome = world.from_pod(talk.request("S", seq=9_000_000))
    assert (outcome.verdict, outcome.reasons) == (model.REDIRECT, {"no_endpoint": 1})


@pytest.mark.parametrize(
    "state", ["client closed", "backend closed", "client closed, sent again with its data"]
)
def test_a_close_that_nobody_answered(world: World, shape: Shape, state: str) -> None:
    """Also with a backend that serves: whoever closed is gone, or cannot be reached."""
    backends = set()
    service = serve(world, shape)
    for turn in range(40):
        talk = Conversation(world, shape, service, seq=1000 + turn * 100000).open()
        if state.endswith("data"):
            start = talk.seq
            talk.up("PA", b"x")
            talk.up("FA")
            talk.up("FPA", b"x", seq=start)
        else:
            (talk.up if "client" in state else talk.down)("FA")
        backends.add(talk.backend)
    assert len(backends) == 3
    assert world.service_counts(service)["connections"] == 40


LIVE = ["established", "in use", "client closed, known", "backend closed, known",
        "client closed behind data", "perhaps reset"]  # fmt: skip


@pytest.mark.parametrize("state", LIVE)
def test_a_syn_alone_ends_nothing_that_lives(world: World, shape: Shape, state: str) -> None:
    """It may be forged. The backend serves and answers with a challenge (RFC 5961); if the client
    knows nothing of the old connection, its RST to that is right, and its next SYN begins anew."""
    talk = Conversation(world, shape, serve(world, shape))
    STATES[state](talk)
    before = [flow.key for flow in world.flows()]
    for _ in range(10):
        assert talk.up("S", seq=424242).reasons == {}
    assert [flow.key for flow in world.flows()] == before
    talk.down("A")
    talk.up("A")
    assert talk.state != "reset"
    talk.down("A", ack=777777)
    talk.up("R", seq=777777)
    assert talk.state == "reset"
    again = Conversation(world, shape, talk.service, seq=9_000_000)
    assert again.up("S").reasons == {"forwarded": 1}


def test_other_connections_are_not_affected(world: World, shape: Shape) -> None:
    service = serve(world, shape)
    talks = [Conversation(world, shape, service, sport=40000 + n).open() for n in range(12)]
    old = talks[0].backend
    leave(world, service, old)
    Conversation(world, shape, service, seq=9_000_000).up("S")
    for talk in talks[1:]:
        talk.up("PA", b"x")
        talk.down("PA", b"y")
