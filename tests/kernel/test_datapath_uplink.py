"""From outside to a backend on another node: in and out by the uplink, changed each time."""

from __future__ import annotations

import pytest

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import checks, model, packets
from tests.kernel.support.icmp_errors import ROUTER, aged, error, quote_of
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, REMOTE, Passage, node_port
from tests.kernel.support.world import NODE, NODE_PORT_MAX, PORT_MAX, PORT_MIN, World

pytestmark = pytest.mark.kernel
SHAPES = [*PLAIN, *SCTP_SHAPES, Shape(4, "udp", zero=True), Shape(4, "tcp", vlans=1)]
WITH_HEADERS = [Shape(6, "udp", "all"), Shape(6, "sctp", "hop")]
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)
SUMS = pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])


@SUMS
@pytest.mark.parametrize("shape", [*SHAPES, *WITH_HEADERS], ids=str)
def test_all_four_translations(world: World, shape: Shape, flags: int) -> None:
    node_port(world, shape)
    passage = Passage(world, shape, flags=flags)
    passage.up("S")
    assert len(world.flows()) == 4
    passage.down("SA")
    for size in (0, 1, 2, 3, 1000, 1399):
        passage.up("A", b"q" * size)
        passage.down("PA", b"a" * size)
    assert len(world.flows()) == 4


@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_uplinks_without_link_header(world: World, shape: Shape) -> None:
    """A test run wants 14 bytes before 20 of the IP header, so there is always some payload."""
    node_port(world, shape)
    passage = Passage(world, shape, bare=True)
    for size in (40, 41, 1000):
        passage.up("A" if passage.port else "S", b"q" * size)
        passage.down("PA", b"a" * size)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("first", ["client", "server"])
def test_nothing_but_the_backends_time_wait_is_left(world: World, shape: Shape, first: str) -> None:
    node_port(world, shape)
    passage = Passage(world, shape)
    passage.up("S")
    passage.down("SA")
    passage.up("A")
    passage.close(first)
    assert sorted(flow.state for flow in world.flows()) == ["side"] * 2 + ["time_wait"] * 2
    reply = next(flow for flow in world.flows() if flow.reply and flow.state == "time_wait")
    port = reply.dport
    world.sweep()
    left = {flow.state for flow in world.flows() if port in (flow.sport, flow.dport)}
    assert left == (set() if first == "client" else {"side", "time_wait"})


def clients(world: World, shape: Shape, count: int) -> list[Passage]:
    """As many, all with one port of their own."""
    pattern = {4: "8.0.2.%d", 6: "2001:db8:86dd::2:%d"}[shape.family]
    return [Passage(world, shape, address=pattern % number) for number in range(1, count + 1)]


@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_the_clients_own_port_is_kept_where_it_is_free(world: World, shape: Shape) -> None:
    """Towards one backend one of them can; the others get ports of the range."""
    node_port(world, shape)
    passages = clients(world, shape, 5)
    for passage in passages:
        passage.up("S")
        passage.down("SA")
    assert passages[0].port == passages[0].sport
    others = {passage.port for passage in passages[1:]}
    assert len(others) == 4
    assert all(PORT_MIN <= port <= PORT_MAX for port in others)
    own = Passage(world, shape, sport=PORT_MIN + 7)  # may be another's next
    own.up("S")
    assert PORT_MIN <= own.port <= PORT_MAX


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_port_that_the_backend_still_holds_is_taken_last(world: World, shape: Shape) -> None:
    """Its kernel may not take another client's SYN there for a new connection."""
    node_port(world, shape)
    world.configure(port_min=PORT_MIN, port_max=PORT_MIN + 2)
    keeps, first, *more, late = clients(world, shape, 6)
    keeps.open()
    first.open()
    first.close("server")
    world.sweep()
    for passage in more:
        passage.open()
    assert {passage.port for passage in more} == {PORT_MIN, PORT_MIN + 1, PORT_MIN + 2}
    assert more[-1].port == first.port
    assert world.counts()["port_reused"] > 0
    outcome = world.from_net(late.request())
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"ports_exhausted": 1})
    for passage in (keeps, *more):
        passage.up("A", b"x")
        passage.down("A", b"y")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_the_port_that_was_closed_first_is_taken_first(world: World, shape: Shape) -> None:
    """Of those that the backend does not hold before any that it does."""
    node_port(world, shape)
    world.configure(port_min=PORT_MIN, port_max=PORT_MIN + 3)
    keeps, *closed = clients(world, shape, 5)
    keeps.open()
    for passage, side in zip(closed, ("server", "client", "server", "client"), strict=True):
        passage.open()
        passage.close(side)
        world.age(5)
    again = [Passage(world, shape, sport=keeps.sport, address=OUTSIDE[shape.family])]
    before = world.counts()["port_reused"]
    again[0].open()
    assert again[0].port == closed[1].port
    assert world.counts()["port_reused"] == before


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_handshakes_that_nobody_goes_on_with_give_their_ports_back(
    world: World, shape: Shape
) -> None:
    """Forged sources must not close a node port. A handshake that goes on is not touched."""
    node_port(world, shape)
    world.configure(port_min=PORT_MIN, port_max=PORT_MIN + 3)
    keeps, *forged = clients(world, shape, 5)
    keeps.open()
    for passage in forged:
        passage.up("S")
    young = Passage(world, shape, sport=keeps.sport)
    outcome = world.from_net(young.request())
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"ports_exhausted": 1})
    world.age(world.flag("HANDSHAKE_BEATS") + 2)
    young.open()
    keeps.up("A", b"x")
    keeps.down("A", b"y")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_the_node_itself_keeps_off_the_ports_of_masqueraded_flows(
    world: World, shape: Shape
) -> None:
    """Its socket has the port that a client of the node port has kept: both are answered."""
    node_port(world, shape)
    passage = Passage(world, shape)
    passage.up("S")
    passage.down("SA")
    assert passage.port == passage.sport
    node, backend = NODE[shape.family], REMOTE[shape.family]
    asked = packets.frame(shape, node, passage.sport, *backend, b"own", flags="S")
    sent = world.to_net(asked)
    port = model.tuple_of(sent.frame).sport
    assert (sent.verdict, sent.frame) == (model.PASS, model.rewrite(asked, sport=port))
    assert PORT_MAX < port <= NODE_PORT_MAX
    answer = packets.frame(shape, *backend, node, port, b"to you", flags="SA")
    heard = world.from_net(answer)
    wanted = model.rewrite(answer, dport=passage.sport)
    assert (heard.verdict, heard.frame) == (model.PASS, wanted)
    for payload in (b"", b"more"):
        passage.up("A", payload)
        passage.down("PA", payload)
        again = packets.frame(shape, node, passage.sport, *backend, payload, flags="A")
        assert world.to_net(again).frame == model.rewrite(again, sport=port)
    assert world.counts()["internal"] == 0


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_what_the_node_calls_by_itself_is_left_alone(world: World, shape: Shape) -> None:
    node_port(world, shape)
    asked = packets.frame(shape, NODE[shape.family], 40000, *REMOTE[shape.family], b"x", flags="S")
    outcome = world.to_net(asked)
    assert (outcome.verdict, outcome.frame) == (model.PASS, asked)


@EACH
@pytest.mark.parametrize("sender", ["backend", "router"])
def test_errors_about_what_the_client_sent(world: World, shape: Shape, sender: str) -> None:
    """From behind this node, to its address, about a packet as it left: the client is told of its
    own packet, by the node port's address or by the router."""
    node_port(world, shape)
    passage = Passage(world, shape)
    sent = passage.request("S", b"request" * 10)
    _, left = passage.up("S", b"request" * 10)
    source = REMOTE[shape.family][0] if sender == "backend" else ROUTER[shape.family]
    frame = error(shape, source, NODE[shape.family], aged(left), size=100)
    told = passage.go_out(passage.come_in(frame))
    assert without_crc(quote_of(told), shape) == without_crc(aged(sent)[:100], shape)
    seen = NODE[shape.family] if sender == "backend" else source
    out = model.tuple_of(told)
    assert (out.src, out.dst) == (model.packed(seen), model.packed(OUTSIDE[shape.family]))


@EACH
def test_errors_about_what_the_backend_sent(world: World, shape: Shape) -> None:
    node_port(world, shape)
    passage = Passage(world, shape)
    passage.up("S", b"request")
    sent = passage.reply("SA", b"answer" * 10)
    _, left = passage.down("SA", b"answer" * 10)
    frame = error(shape, OUTSIDE[shape.family], NODE[shape.family], aged(left), size=100)
    told = passage.go_out(passage.come_in(frame))
    assert without_crc(quote_of(told), shape) == without_crc(aged(sent)[:100], shape)
    out = model.tuple_of(told)
    backend = REMOTE[shape.family][0]
    assert (out.src, out.dst) == (model.packed(NODE[shape.family]), model.packed(backend))


def without_crc(quote: bytes, shape: Shape) -> bytes:
    """A quote's CRC over ports that were others stays: nobody can check it over a part."""
    if shape.protocol != "sctp":
        return quote
    at = (20, 40)[shape.family == 6] + 8
    return quote[:at] + bytes(4) + quote[at + 4 :]


@pytest.mark.parametrize("family", [4, 6])
def test_an_sctp_checksum_that_the_device_fills_in_is_left_alone(world: World, family: int) -> None:
    shape = Shape(family, "sctp")
    node_port(world, shape)
    frame = bytearray(Passage(world, shape).request(payload=b"x"))
    at = model.parse(bytes(frame)).transport + 8
    frame[at : at + 4] = bytes(4)
    outcome = world.from_net(bytes(frame))
    assert outcome.verdict == model.PASS
    assert outcome.frame[at : at + 4] == bytes(4)
    assert model.tuple_of(outcome.frame).dport == REMOTE[family][1]


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_other_ports_of_the_node_are_its_own(world: World, shape: Shape) -> None:
    """Untouched, whether anyone listens there or not; also where masqueraded flows have theirs."""
    node_port(world, shape)
    for port in (22, NODE_PORT + 1, 61000, 61999):
        frame = packets.frame(shape, OUTSIDE[shape.family], 40000, NODE[shape.family], port)
        outcome = world.from_net(frame)
        assert (outcome.verdict, outcome.frame) == (model.PASS, frame), port
    assert world.flows() == []
    frame = Passage(world, shape).request()
    assert world.from_net(frame).frame != frame


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_never_one_port_inside_and_another_outside(world: World, shape: Shape) -> None:
    """The client's own ports may be of the node's range, and flows that are not masqueraded hold
    the replies' tuples: the new flow gets none of theirs."""
    world.configure(port_min=61000, port_max=61031)
    node_port(world, shape)
    cluster_ip = {4: "10.96.0.77", 6: "fd00:96::77"}[shape.family]
    world.add_service(cluster_ip, 80, shape.protocol, [REMOTE[shape.family]])
    for port in range(61000, 61032):
        frame = packets.frame(shape, OUTSIDE[shape.family], port, cluster_ip, 80, flags="S")
        assert world.from_pod(frame).verdict == model.PASS
    outcome = world.from_net(Passage(world, shape, 61000).request())
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"ports_exhausted": 1})
    # Eight of them are held, and then those of this: fewer than are tried in a row.
    world.configure(port_min=61024, port_max=61071)
    for sport in range(61000, 61008):
        passage = Passage(world, shape, sport)
        passage.up("S")
        passage.down("SA")
        assert passage.port > 61031


def test_sums_are_checked_by_someone_else() -> None:
    """The checks of this file can fail."""
    frame = bytearray(packets.frame(Shape(4, "sctp"), "8.0.0.9", 1, "8.0.1.1", 2, b"x"))
    frame[-5] ^= 1
    with pytest.raises(AssertionError):
        checks.assert_sums(bytes(frame))
