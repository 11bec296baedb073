"""What sockets of the node's own send to a service by an uplink, and what comes back.

A packet of a test run has a socket, as those of the node's own have.
"""

from __future__ import annotations

import pytest

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import PORT, SERVICE
from tests.kernel.support.icmp_errors import ROUTER, aged, error, quote_of
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.uplink import REMOTE
from tests.kernel.support.world import NODE, NODE_PORT_MAX, PORT_MAX, Service, World

pytestmark = pytest.mark.kernel
EACH = pytest.mark.parametrize("shape", PLAIN, ids=str)
SUMS = pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
SPORT = 40000


class Socket:
    """One of the node's, as the hooks see its packets. (Where they are sent is for the lab: this
    namespace has no route.)"""

    def __init__(self, world: World, shape: Shape, flags: int = 0) -> None:
        self.world, self.shape, self.flags = world, shape, flags
        self.port = 0  # the one it got
        self.node, self.backend = NODE[shape.family], REMOTE[shape.family]

    def request(self, flags: str = "S", payload: bytes = b"hello", seq: int = 1000) -> bytes:
        place = (self.node, SPORT, SERVICE[self.shape.family], PORT)
        return packets.frame(self.shape, *place, payload, flags=flags, seq=seq, ack=5001)

    def send(self, flags: str = "S", payload: bytes = b"hello", seq: int = 1000) -> bytes:
        """The translated packet, compared with the model."""
        frame = self.request(flags, payload, seq)
        out = self.world.to_net(frame)
        self.port = self.port or model.tuple_of(out.frame).sport
        assert PORT_MAX < self.port <= NODE_PORT_MAX, out
        address, port = self.backend
        assert out.frame == model.rewrite(frame, dst=address, dport=port, sport=self.port)
        checks.assert_sums(out.frame)
        return out.frame

    def hear(self, flags: str = "SA", payload: bytes = b"hello back", hook: str = "net") -> None:
        place = (*self.backend, self.node, self.port)
        seq = 5000 if "S" in flags else 5001
        frame = packets.frame(self.shape, *place, payload, flags=flags, seq=seq, ack=1001)
        come_in = self.world.from_net if hook == "net" else self.world.from_pod
        out = come_in(frame, self.flags)
        assert out.verdict == model.PASS
        service = SERVICE[self.shape.family]
        assert out.frame == model.rewrite(frame, src=service, sport=PORT, dport=SPORT)
        checks.assert_sums(out.frame)


def serve(world: World, shape: Shape, *, endpoints: bool = True) -> Service:
    backends = [REMOTE[shape.family]] if endpoints else []
    return world.add_service(SERVICE[shape.family], PORT, shape.protocol, backends)


@SUMS
@EACH
@pytest.mark.parametrize("hook", ["net", "pod"])
def test_both_ways(world: World, shape: Shape, hook: str, flags: int) -> None:
    serve(world, shape)
    talk = Socket(world, shape, flags)
    for number, (there, back) in enumerate((("S", "SA"), ("A", "PA"), ("PA", "A"))):
        talk.send(there, b"q" * number)
        talk.hear(back, b"a" * number, hook)
    assert len(world.flows()) == 2
    assert world.counts()["internal"] == 0


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_tcp_is_reset(world: World, shape: Shape) -> None:
    serve(world, shape)
    talk = Socket(world, shape)
    for there, back in (("S", "SA"), ("A", "PA")):
        talk.send(there)
        talk.hear(back)
    talk.send("R", b"", seq=1001)  # what was acknowledged
    assert {flow.state for flow in world.flows()} == {"reset"}


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_tcp_is_closed_by_a_fin(world: World, shape: Shape) -> None:
    serve(world, shape)
    talk = Socket(world, shape)
    for there, back in (("S", "SA"), ("A", "PA")):
        talk.send(there)
        talk.hear(back)
    talk.send("FA", seq=1001)
    assert {flow.state for flow in world.flows()} == {"fin_wait"}


@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_datagrams_move_on_and_begin_when_there_is_an_endpoint(world: World, shape: Shape) -> None:
    service = serve(world, shape, endpoints=False)
    talk = Socket(world, shape)
    refused = world.to_net(talk.request())
    assert (refused.verdict, refused.reasons) == (model.REDIRECT, {"no_endpoint": 1})
    checks.assert_unreachable(talk.request(), refused.frame)
    world.set_backends(service, [talk.backend])
    talk.send()
    talk.hear()
    talk.backend = (talk.backend[0], talk.backend[1] + 1)
    world.set_backends(service, [talk.backend])
    talk.port = 0
    talk.send()
    talk.hear()


@EACH
def test_what_nobody_serves_is_refused(world: World, shape: Shape) -> None:
    serve(world, shape)
    place = (NODE[shape.family], SPORT, SERVICE[shape.family], PORT + 1)
    frame = packets.frame(shape, *place, b"hello", flags="S")
    out = world.to_net(frame)
    assert (out.verdict, out.reasons) == (model.REDIRECT, {"unknown_port": 1})
    check = checks.assert_reset if shape.protocol == "tcp" else checks.assert_unreachable
    check(frame, out.frame)


@EACH
def test_an_endpoint_on_the_node_itself_is_refused(world: World, shape: Shape) -> None:
    """What it answers never leaves the node; another one is taken if there is any."""
    own = (NODE[shape.family], 8080)
    service = world.add_service(SERVICE[shape.family], PORT, shape.protocol, [own])
    talk = Socket(world, shape)
    refused = world.to_net(talk.request())
    assert (refused.verdict, refused.reasons) == (model.REDIRECT, {"endpoint_is_node": 1})
    world.set_backends(service, [own] + [talk.backend] * 9)
    talk.send()


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("cluster_ip", [True, False])
def test_midstream(world: World, shape: Shape, cluster_ip: bool) -> None:
    """At an outside address others may have served the connection before: it is left to them."""
    place = (SERVICE[shape.family], PORT, shape.protocol, [REMOTE[shape.family]])
    world.add_service(*place, cluster_ip=cluster_ip)
    frame = Socket(world, shape).request("A")
    out = world.to_net(frame)
    if cluster_ip:
        assert (out.verdict, out.reasons) == (model.REDIRECT, {"no_flow_reset": 1})
    else:
        assert (out.verdict, out.frame) == (model.PASS, frame)


@EACH
@pytest.mark.parametrize("sender", ["backend", "router"])
def test_icmp_errors_come_back_in_the_clients_words(
    world: World, shape: Shape, sender: str
) -> None:
    serve(world, shape)
    talk = Socket(world, shape)
    sent, frame = talk.request("S"), talk.send("S")
    by = talk.backend[0] if sender == "backend" else ROUTER[shape.family]
    about = error(shape, by, talk.node, aged(frame), "unreachable")
    out = world.from_net(about)
    assert (out.verdict, out.reasons) == (model.PASS, {"icmp_translated": 1})
    assert quote_of(out.frame) == aged(sent)
    service = SERVICE[shape.family] if sender == "backend" else by
    assert model.tuple_of(out.frame).src == model.packed(service)
    checks.assert_sums(out.frame)


@EACH
def test_what_is_forwarded_is_not_touched_by_its_answers_port(world: World, shape: Shape) -> None:
    """A reply for somebody else, under a port of the node's range, waits for the way out."""
    serve(world, shape)
    frame = packets.frame(shape, *REMOTE[shape.family], NODE[shape.family], NODE_PORT_MAX, b"x")
    out = world.from_net(frame)
    assert (out.verdict, out.frame) == (model.PASS, frame)
