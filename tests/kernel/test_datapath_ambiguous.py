"""One client port for two conversations with one backend: the replies must not mix.

The kernel gives a port to connections with different destinations; after translation two of them
may have the same destination, and then only another source port tells their replies apart.
"""

import pytest

from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import BACKENDS, CLIENT, SECOND, Conversation, serve
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.world import NODE, PORT_MAX, PORT_MIN, TIMEOUTS, Endpoint, Outcome, World

pytestmark = pytest.mark.kernel
EACH = pytest.mark.parametrize("shape", PLAIN, ids=str)


class Direct:
    """A conversation straight with a backend, past every service; `seen_port` is the client's port
    as the backend sees it."""

    def __init__(self, world: World, shape: Shape, sport: int = 40000) -> None:
        self.world, self.shape, self.sport, self.seen_port = world, shape, sport, sport
        self.backend: Endpoint = BACKENDS[shape.family][0]
        self.client = CLIENT[shape.family]

    def up(self, flags: str = "S", payload: bytes = b"", learn: bool = False) -> Outcome:
        """To the backend; only the source port may change."""
        frame = packets.frame(
            self.shape, self.client, self.sport, *self.backend, payload, flags=flags
        )
        outcome = self.world.from_pod(frame)
        assert outcome.verdict == model.PASS
        if learn:
            self.seen_port = model.tuple_of(outcome.frame).sport
        assert outcome.frame == model.rewrite(frame, sport=self.seen_port)
        checks.assert_sums(outcome.frame)
        return outcome

    def down(self, flags: str = "SA", payload: bytes = b"") -> None:
        """From the backend, as itself."""
        frame = packets.frame(
            self.shape, *self.backend, self.client, self.seen_port, payload, flags=flags
        )
        outcome = self.world.to_pod(frame)
        assert (outcome.verdict, outcome.frame) == (
            model.PASS,
            model.rewrite(frame, dport=self.sport),
        )
        checks.assert_sums(outcome.frame)


@EACH
def test_two_services_with_a_common_backend(world: World, shape: Shape) -> None:
    first = Conversation(world, shape, serve(world, shape, count=1)).open()
    second = Conversation(world, shape, serve(world, shape, 1, SECOND[shape.family]))
    reasons = second.up("S", b"").reasons
    assert reasons == {"forwarded": 1, "source_translated": 1}
    assert PORT_MIN <= second.seen_port <= PORT_MAX
    second.down("SA")
    for number in range(10):
        for talk in (first, second):
            talk.up("PA", b"x" * number)
            talk.down("PA", b"y" * number)
    assert len(world.flows()) == 4


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_end_of_one_is_not_the_end_of_the_other(world: World, shape: Shape) -> None:
    first = Conversation(world, shape, serve(world, shape, count=1)).open()
    second = Conversation(world, shape, serve(world, shape, 1, SECOND[shape.family])).open()
    first.close_from_client()
    second.up("PA", b"x")
    second.down("PA", b"y")
    again = Conversation(world, shape, first.service, seq=90000).open()
    second.down("R")
    again.up("PA", b"x")
    again.down("PA", b"y")


@EACH
def test_as_many_services_as_there_are_ports(world: World, shape: Shape) -> None:
    """With a range of three ports the fifth conversation finds none and is dropped."""
    world.configure(port_min=61000, port_max=61002)
    talks: list[Conversation] = []
    outcomes: list[Outcome] = []
    for number in range(12):
        address = ("10.96.1.%d" if shape.family == 4 else "fd00:96::1:%d") % number
        talk = Conversation(world, shape, serve(world, shape, 1, address))
        outcome = world.from_pod(talk.request())
        outcomes.append(outcome)
        if outcome.verdict == model.PASS:
            talk.backend = BACKENDS[shape.family][0]
            talk.seen_port = model.tuple_of(outcome.frame).sport
            talks.append(talk)
        else:
            assert (outcome.verdict, outcome.reasons) == (model.DROP, {"ports_exhausted": 1})
    assert outcomes[-1].verdict == model.DROP
    assert 2 <= len(talks) <= 4
    assert len({talk.seen_port for talk in talks}) == len(talks)
    assert len(world.flows()) == 2 * len(talks)
    for talk in talks:
        talk.down("SA")


@pytest.mark.parametrize("family", [4, 6])
def test_sctp_gets_another_port_and_a_new_crc(world: World, family: int) -> None:
    shape = Shape(family, "sctp")
    first = Conversation(world, shape, serve(world, shape, count=1)).open()
    second = Conversation(world, shape, serve(world, shape, 1, SECOND[family]))
    assert second.up().reasons["source_translated"] == 1
    assert PORT_MIN <= second.seen_port <= PORT_MAX
    for talk in (first, second):
        talk.up(payload=b"x")
        talk.down(payload=b"y")
    assert len(world.flows()) == 4


@EACH
def test_direct_beside_a_service(world: World, shape: Shape) -> None:
    """The direct one comes second and gets another source port."""
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    direct = Direct(world, shape)
    assert direct.up("S", learn=True).reasons["source_translated"] == 1
    assert PORT_MIN <= direct.seen_port <= PORT_MAX
    direct.down("SA")
    for number in range(10):
        talk.up("A", b"x" * number)
        direct.up("A", b"x" * number)
        talk.down("PA", b"y" * number)
        direct.down("PA", b"y" * number)


@EACH
def test_direct_alone_is_untouched(world: World, shape: Shape) -> None:
    serve(world, shape)
    direct = Direct(world, shape)
    for _ in range(3):
        direct.up("S")
        direct.down("SA")
        direct.up("A", b"x")
        direct.down("A", b"y")
    assert direct.seen_port == direct.sport


@EACH
def test_a_service_beside_a_direct_conversation(world: World, shape: Shape) -> None:
    """The other order: the direct conversation was there first and keeps its tuple."""
    service = serve(world, shape, count=1)
    direct = Direct(world, shape)
    direct.up("S")
    direct.down("SA")
    direct.up("A", b"x")
    talk = Conversation(world, shape, service)
    talk.up("S")
    assert talk.seen_port != talk.sport
    talk.down("SA")
    for number in range(5):
        talk.up("A", b"x" * number)
        direct.up("A", b"x" * number)
        talk.down("PA", b"y" * number)
        direct.down("PA", b"y" * number)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("ending", ["reset", "idle", "closed"])
def test_a_finished_flow_catches_no_direct_connection(
    world: World, shape: Shape, ending: str
) -> None:
    """Whatever is left of the service's flow, the direct connection's replies are its own.

    After a close or a reset it gets another port: its SYN could overtake the last packet.
    """
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    if ending == "reset":
        talk.down("RA")
    elif ending == "idle":
        world.age(TIMEOUTS["established_timeout"] + 2)
    else:
        talk.close_from_client()
    direct = Direct(world, shape)
    direct.up("S", learn=True)
    assert (direct.seen_port == direct.sport) == (ending == "idle")
    direct.down("SA")
    direct.up("A", b"x")
    direct.down("PA", b"y")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_direct_connection_in_use_is_not_forgotten(world: World, shape: Shape) -> None:
    """Its note is kept young by its replies, also in the table that forgets what nobody uses."""
    service = serve(world, shape, count=1)
    direct = Direct(world, shape)
    direct.up("S")
    direct.down("SA")
    for _ in range(3):
        world.age(TIMEOUTS["established_timeout"] // 2)
        direct.up("A", b"x")
        direct.down("PA", b"y")
    talk = Conversation(world, shape, service)
    assert talk.up("S").reasons == {"forwarded": 1, "source_translated": 1}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_tuple_in_time_wait_and_a_direct_connection(world: World, shape: Shape) -> None:
    """With the tuple or with another port, the direct connection works."""
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    talk.close_from_backend()
    direct = Direct(world, shape)
    direct.up("S", learn=True)
    direct.down("SA")
    direct.up("A", b"x")
    direct.down("PA", b"y")


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_an_expired_udp_flow_catches_no_direct_datagram(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=1)).open()
    talk.up(payload=b"x")
    world.age(TIMEOUTS["datagram_stream_timeout"] + 2)
    direct = Direct(world, shape)
    direct.up(payload=b"x")
    direct.down(payload=b"y")


@EACH
def test_clients_with_one_port_are_told_apart_by_their_address(world: World, shape: Shape) -> None:
    service = serve(world, shape, count=1)
    pattern = "10.1.0.%d" if shape.family == 4 else "fd00:1::%d"
    talks = [Conversation(world, shape, service, client=pattern % n).open() for n in range(2, 30)]
    for talk in talks:
        assert talk.seen_port == talk.sport
        talk.up("PA", b"x")
        talk.down("PA", b"y")


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
@pytest.mark.parametrize("port", [5060, 5061], ids=["one port", "two ports"])
def test_two_peers_that_call_each_other_by_services(world: World, shape: Shape, port: int) -> None:
    """Each uses the port it serves as its source. What the other one sent, to that port, came
    first and keeps the tuple: the pod's own call goes out by another port, and its answer to the
    other one by the port that was asked."""
    pod, (peer, peer_port) = CLIENT[shape.family], BACKENDS[shape.family][0]
    service = serve(world, shape, count=1)
    called = packets.frame(shape, peer, peer_port, pod, port, b"call")
    for _ in range(3):
        outcome = world.to_pod(called)
        assert (outcome.verdict, outcome.frame, outcome.reasons) == (model.PASS, called, {})
    talk = Conversation(world, shape, service, sport=port)
    assert talk.up(payload=b"my call").reasons == {"forwarded": 1, "source_translated": 1}
    assert PORT_MIN <= talk.seen_port <= PORT_MAX
    answer = packets.frame(shape, pod, port, peer, peer_port, b"answer")
    for _ in range(3):
        assert world.from_pod(answer).frame == answer
        talk.down(payload=b"answer to mine")
        assert world.to_pod(called).frame == called
        world.age(2)


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_who_calls_first_keeps_its_tuple(world: World, shape: Shape) -> None:
    """What comes from the endpoint afterwards, to that port, answers the call."""
    talk = Conversation(world, shape, serve(world, shape, count=1), sport=5060)
    talk.up(payload=b"call")
    assert talk.seen_port == 5060
    for _ in range(3):
        talk.down(payload=b"answer")
        world.age(2)
    assert len(world.flows()) == 2


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_what_comes_from_no_endpoint_is_not_noted(world: World, shape: Shape) -> None:
    """Or anybody could fill the table."""
    serve(world, shape)
    pod, (peer, peer_port) = CLIENT[shape.family], BACKENDS[shape.family][0]
    for number in range(20):
        world.to_pod(packets.frame(shape, peer, peer_port + 1 + number, pod, 5060, b"x"))
        world.to_pod(packets.frame(shape, peer, PORT_MIN + number, pod, 5060, b"x"))
        world.to_net(packets.frame(shape, peer, peer_port, pod, 5060 + number, b"x"))
    node = NODE[shape.family]
    world.add_service(node, 30080, shape.protocol, [(peer, peer_port)], cluster_ip=False)
    world.to_pod(packets.frame(shape, node, 30080, pod, 5060, b"x"))
    assert world.flows() == []


@EACH
def test_what_comes_by_an_uplink_straight_to_an_endpoint_keeps_its_tuple(
    world: World, shape: Shape
) -> None:
    """Another node's process, or what another node translated: a service flow of the same client
    port gets another one."""
    service = serve(world, shape, count=1)
    client, backend = CLIENT[shape.family], BACKENDS[shape.family][0]
    straight = packets.frame(shape, client, 40000, *backend, b"x", flags="S")
    outcome = world.from_net(straight)
    assert (outcome.verdict, outcome.frame) == (model.PASS, straight)
    talk = Conversation(world, shape, service)
    assert talk.up("S").reasons == {"forwarded": 1, "source_translated": 1}
    answer = packets.frame(shape, *backend, client, 40000, b"y", flags="SA")
    outcome = world.to_net(answer)
    assert (outcome.verdict, outcome.frame) == (model.PASS, answer)
    talk.down("SA")


@EACH
def test_notes_of_connections_that_closed_rest_and_go(world: World, shape: Shape) -> None:
    """As tuples of flows do; the next connection takes the note over."""
    serve(world, shape)
    direct = Direct(world, shape)
    direct.up("S")
    direct.down("SA")
    (note,) = world.notes()
    direct.down("FA")
    (closed,) = world.notes()
    assert closed.generation == note.generation
    assert closed.state == ("time_wait" if shape.protocol == "tcp" else "datagram")
    direct.up("S")
    assert [n.state for n in world.notes()] == [note.state]
