"""Conversations of the node's own, and of pods behind its masquerading, from a service's port."""

from __future__ import annotations

import pytest

from tests.kernel.support import model, packets
from tests.kernel.support.conversation import CLIENT, SERVICE, Conversation
from tests.kernel.support.fragments import pieces
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE, Passage
from tests.kernel.support.world import NODE, TIMEOUTS, Service, World

pytestmark = pytest.mark.kernel
DATAGRAMS = [*UDP_SHAPES, *SCTP_SHAPES]
EACH = pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
HOOKS = pytest.mark.parametrize("hooks", [("to_net", "from_net"), ("to_pod", "from_pod")], ids=str)
ANOTHER = {4: "192.0.2.99", 6: "fd00:192::99"}  # an address of the node that is not its primary one
SERVER = 9000


def node_port(world: World, shape: Shape, *, shared: bool = True) -> Service:
    address = NODE[shape.family]
    return world.add_service(
        address,
        NODE_PORT,
        shape.protocol,
        [REMOTE[shape.family]],
        cluster_ip=False,
        shared=shared,
    )


def asked(shape: Shape, sport: int = NODE_PORT, flags: str = "S", client: str = "") -> bytes:
    """The node asks a server outside, from a port that is a service's."""
    ends = (NODE[shape.family], sport, client or OUTSIDE[shape.family], SERVER)
    return packets.frame(shape, *ends, b"question", flags=flags)


def answered(shape: Shape, flags: str = "SA", client: str = "") -> bytes:
    ends = (client or OUTSIDE[shape.family], SERVER, NODE[shape.family], NODE_PORT)
    return packets.frame(shape, *ends, b"answer", flags=flags)


def left_alone(world: World, hook: str, frame: bytes) -> bool:
    outcome = getattr(world, hook)(frame)
    return (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("flags", ["SA", "A", "PA", "FA", "R", "RA"])
@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@HOOKS
def test_tcp_that_begins_nothing_is_the_stacks(
    world: World, shape: Shape, flags: str, hooks: tuple[str, str]
) -> None:
    """At an address that the node has: it resets by itself what nobody has."""
    node_port(world, shape)
    outcome = getattr(world, hooks[1])(answered(shape, flags))
    assert (outcome.verdict, outcome.frame) == (model.PASS, answered(shape, flags))
    assert outcome.reasons == {"left_to_stack": 1}
    assert (world.flows(), world.noted()) == ([], 0)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_tcp_at_an_address_that_the_node_has_not_is_told_by_what_left(
    world: World, shape: Shape
) -> None:
    """As with a source that rules of the node's make of it. Established packets are not looked at,
    and a client's SYN from the same port is a client's."""
    node_port(world, shape, shared=False)
    assert world.from_net(answered(shape)).verdict == model.REDIRECT
    assert left_alone(world, "to_net", asked(shape))
    for flags in ("SA", "A", "FA"):
        assert left_alone(world, "from_net", answered(shape, flags))
        world.age(TIMEOUTS["established_timeout"] - 1)
    assert left_alone(world, "from_net", answered(shape, "A"))
    assert world.noted() == 1
    world.age(TIMEOUTS["established_timeout"] + 1)
    assert world.from_net(answered(shape, "A")).verdict == model.REDIRECT
    assert left_alone(world, "to_net", asked(shape))
    assert world.from_net(answered(shape, "S")).reasons == {"forwarded": 1}


@pytest.mark.parametrize("shape", DATAGRAMS, ids=str)
@HOOKS
def test_a_datagram_that_answers_the_node_is_no_clients(
    world: World, shape: Shape, hooks: tuple[str, str]
) -> None:
    out, back = hooks
    node_port(world, shape)
    for _ in range(3):
        assert left_alone(world, out, asked(shape))
        outcome = getattr(world, back)(answered(shape))
        assert (outcome.verdict, outcome.frame) == (model.PASS, answered(shape))
        assert outcome.reasons == {"left_to_stack": 1}
    assert (world.flows(), world.noted()) == ([], 1)
    # Another client's is.
    outcome = getattr(world, back)(answered(shape, client=CLIENT[shape.family]))
    assert outcome.reasons == {"forwarded": 1}


@pytest.mark.parametrize("shape", DATAGRAMS, ids=str)
def test_a_note_ages_unless_the_node_goes_on(world: World, shape: Shape) -> None:
    """Whatever the other side sends meanwhile: it must not hold the tuple of a client."""
    node_port(world, shape)
    for _ in range(3):
        assert left_alone(world, "to_net", asked(shape))
        world.age(TIMEOUTS["datagram_stream_timeout"] - 1)
        assert left_alone(world, "from_net", answered(shape))
    world.age(2)
    assert world.from_net(answered(shape)).reasons == {"forwarded": 1}


@pytest.mark.parametrize("shape", DATAGRAMS, ids=str)
def test_a_clients_flow_goes_before_the_node(world: World, shape: Shape) -> None:
    """Also when its backend goes away in between, and the flow begins anew."""
    service = node_port(world, shape)
    assert world.from_net(answered(shape)).reasons == {"forwarded": 1}
    assert left_alone(world, "to_net", asked(shape))
    assert world.noted() == 0
    address, port = REMOTE[shape.family]
    world.set_backends(service, [(address, port + 1)])
    assert world.from_net(answered(shape)).reasons == {"forwarded": 1, "flow_moved": 1}


@pytest.mark.parametrize("shape", DATAGRAMS, ids=str)
def test_nobody_outside_makes_or_pushes_out_a_note(world: World, shape: Shape) -> None:
    """More clients than there is room for."""
    node_port(world, shape)
    assert left_alone(world, "to_net", asked(shape))
    entries = world.maps[f"cells{shape.family}a"].max_entries // 2
    frame = packets.frame(shape, OUTSIDE[shape.family], 1, NODE[shape.family], NODE_PORT, b"flood")
    many = [model.rewrite(frame, sport=2000 + n) for n in range(entries + 100)]
    world.run_many("entry_from_net", [f for f in many if f != answered(shape)][:entries])
    assert world.noted() == 1
    assert left_alone(world, "from_net", answered(shape))


@EACH
def test_what_leaves_from_elsewhere_is_not_noted(world: World, shape: Shape) -> None:
    """Another port, a ClusterIP, an endpoint that is no frontend."""
    node_port(world, shape)
    cluster_ip = SERVICE[shape.family]
    world.add_service(cluster_ip, 80, shape.protocol, [REMOTE[shape.family]])
    world.mark_endpoint((NODE[shape.family], 4444))
    world.mark_endpoint((CLIENT[shape.family], 80))
    for source, port in (
        (NODE[shape.family], 4444),
        (cluster_ip, 80),
        (CLIENT[shape.family], 80),
    ):
        ends = (source, port, OUTSIDE[shape.family], SERVER)
        frame = packets.frame(shape, *ends, b"x", flags="S")
        for hook in ("to_net", "to_pod"):
            assert left_alone(world, hook, frame)
    assert world.noted() == 0


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_of_an_answer_go_the_same_way(world: World, family: int) -> None:
    shape = Shape(family, "udp")
    node_port(world, shape)
    assert left_alone(world, "to_net", asked(shape))
    ends = (OUTSIDE[family], SERVER, NODE[family], NODE_PORT)
    parts = pieces(packets.frame(shape, *ends, b"a" * 3000), 7)
    assert len(parts) > 2
    for part in parts:
        assert left_alone(world, "from_net", part)
    assert world.flows() == []


# ── servers of the node that answer from another of its addresses ─────────────────────────────


def own_server(world: World, shape: Shape) -> Service:
    """A service whose endpoint is the node."""
    endpoint = (NODE[shape.family], 5353)
    return world.add_service(SERVICE[shape.family], 80, shape.protocol, [endpoint])


@pytest.mark.parametrize("shape", [*UDP_SHAPES, Shape(6, "udp", "hop")], ids=str)
@HOOKS
def test_a_server_that_answers_from_another_address_is_known_by_its_flow(
    world: World, shape: Shape, hooks: tuple[str, str]
) -> None:
    """What the kernel does for a socket that is bound to all addresses: it takes the route's."""
    out, back = hooks
    talk = Conversation(world, shape, own_server(world, shape))
    assert getattr(world, back)(talk.request()).reasons == {"forwarded": 1}
    place = (CLIENT[shape.family], 40000)
    for payload in (b"", b"odd", b"a" * 999):
        frame = packets.frame(shape, ANOTHER[shape.family], 5353, *place, payload)
        outcome = getattr(world, out)(frame)
        wanted = model.rewrite(frame, src=SERVICE[shape.family], sport=80)
        assert (outcome.verdict, outcome.frame) == (model.PASS, wanted)
    world.age(TIMEOUTS["datagram_timeout"] + 1)  # once a beat the flow is kept
    assert getattr(world, out)(frame).frame == wanted
    assert all("replied" in flow.flags for flow in world.flows() if flow.reply)
    assert world.noted() == 0


@EACH
def test_other_servers_answers_stay_as_they_are(world: World, shape: Shape) -> None:
    """To another client, from another port, and of other protocols than UDP."""
    talk = Conversation(world, shape, own_server(world, shape))
    assert world.from_pod(talk.request()).reasons == {"forwarded": 1}
    world.mark_endpoint((ANOTHER[shape.family], 5354))
    cases = [(5353, 40001), (5354, 40000)] + [(5353, 40000)] * (shape.protocol != "udp")
    for sport, dport in cases:
        ends = (ANOTHER[shape.family], sport, CLIENT[shape.family], dport)
        assert left_alone(world, "to_pod", packets.frame(shape, *ends, b"x", flags="SA"))


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_masqueraded_flows_are_none_of_this(world: World, shape: Shape) -> None:
    """A client outside whose backend is elsewhere goes on as before beside the node's own."""
    node_port(world, shape)
    passage = Passage(world, shape)
    passage.up("S")
    passage.down("SA")
    assert left_alone(world, "to_net", asked(shape))
    passage.up("A", b"more")
    passage.down("A", b"still")
