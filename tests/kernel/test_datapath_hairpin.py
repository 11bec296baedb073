"""A pod that reaches itself through a service: it must not see its own address as the source."""

import pytest

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import model
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation
from tests.kernel.support.hairpin import TARGET, Loop, own_service
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.world import NODE, PORT_MAX, PORT_MIN, World

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_all_four_translations(world: World, shape: Shape, flags: int) -> None:
    loop = Loop.start(world, shape, flags=flags)
    assert loop.request().reasons["forwarded"] == 1
    assert len(world.flows()) == 4
    loop.answer()
    for size in (0, 1, 1000):
        loop.request("A", b"q" * size)
        loop.answer("PA", b"a" * size)
    assert len(world.flows()) == 4


@pytest.mark.parametrize("shape", [Shape(4, "udp", zero=True)], ids=str)
def test_without_checksum(world: World, shape: Shape) -> None:
    loop = Loop.start(world, shape, flags=CHECKSUM_COMPLETE)
    loop.request(payload=b"x")
    loop.answer(payload=b"y")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("first", ["client", "server"])
def test_nothing_is_left_after_the_end(world: World, shape: Shape, first: str) -> None:
    """When others have ended too; the server's TIME_WAIT keeps the reply's tuple for longer."""
    loop = Loop.start(world, shape)
    loop.request("S")
    loop.answer("SA")
    loop.request("A")
    if first == "client":
        loop.request("FA")
        loop.answer("A")
        loop.answer("FA")
        loop.request("A")
    else:
        loop.answer("FA")
        loop.request("A")
        loop.request("FA")
        loop.answer("A")
    assert sorted(flow.state for flow in world.flows()) == ["side"] * 2 + ["time_wait"] * 2
    world.sweep()
    left = {flow.state for flow in world.flows() if loop.port in (flow.sport, flow.dport)}
    assert left == (set() if first == "client" else {"side", "time_wait"})


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_same_port_again_and_again(world: World, shape: Shape) -> None:
    service = own_service(world, shape)
    for number in range(20):
        talk = Conversation(world, shape, service, seq=1 + number * 100000)
        loop = Loop(talk, NODE[shape.family])
        loop.request("S")
        loop.answer("SA")
        loop.request("A")
        if number % 2:
            loop.answer("R")
        else:
            loop.answer("FA")
            loop.request("A")
            loop.request("FA")
            loop.answer("A")
        assert len(world.flows()) <= 4 + number + 1


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_without_a_node_address_the_services_own_is_seen(world: World, shape: Shape) -> None:
    world.set_node(shape.family, None)
    loop = Loop.start(world, shape)
    loop.node = loop.talk.address
    loop.request("S")
    loop.answer("SA")
    loop.request("A", b"x")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_many_at_once_do_not_mix(world: World, shape: Shape) -> None:
    service = own_service(world, shape)
    loops = [
        Loop(Conversation(world, shape, service, sport), NODE[shape.family])
        for sport in range(40000, 40040)
    ]
    for step in ("S", "A", "PA"):
        for loop in loops:
            loop.request(step, b"%d" % loop.talk.sport)
        for loop in reversed(loops):
            loop.answer("SA" if step == "S" else "A", b"%d" % loop.talk.sport)
    assert len({loop.port for loop in loops}) == 40


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_one_of_several_backends(world: World, shape: Shape) -> None:
    """The pod itself gets its share, and only then is the source changed."""
    pod = CLIENT[shape.family]
    other = {4: "10.1.1.1", 6: "fd00:1:1::1"}[shape.family]
    backends = [(pod, TARGET), (other, TARGET)]
    service = world.add_service(SERVICE[shape.family], PORT, shape.protocol, backends)
    own = 0
    for sport in range(30000, 30040):
        frame = Conversation(world, shape, service, sport).request()
        out = model.tuple_of(world.from_pod(frame).frame)
        if out.dst == model.packed(pod):
            own += 1
            assert PORT_MIN <= out.sport <= PORT_MAX
        else:
            assert out.sport == sport
    assert 0 < own < 40


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_udp_moves_on_from_itself(world: World, shape: Shape) -> None:
    """The helper entries go with the flow."""
    loop = Loop.start(world, shape)
    loop.request(payload=b"x")
    loop.answer(payload=b"y")
    other = ({4: "10.1.1.1", 6: "fd00:1:1::1"}[shape.family], TARGET)
    world.set_backends(loop.talk.service, [other])
    loop.talk.forget()
    loop.talk.up(payload=b"x")
    assert loop.talk.backend == other
    loop.talk.down(payload=b"y")
    assert "side" not in {flow.state for flow in world.flows()}


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_the_range_of_ports_is_used_up(world: World, shape: Shape) -> None:
    """One port only: the second connection is dropped and leaves no entries."""
    world.configure(port_min=61000, port_max=61000)
    service = own_service(world, shape)
    Loop(Conversation(world, shape, service, 40000), NODE[shape.family]).request()
    outcome = world.from_pod(Conversation(world, shape, service, 40001).request())
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"ports_exhausted": 1})
    assert len(world.flows()) == 4
