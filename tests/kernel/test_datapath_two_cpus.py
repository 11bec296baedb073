"""Two packets of one flow on two CPUs at once: neither undoes what the other one did.

How often they really meet is chance, and more than once in each of these tests on two CPUs.
"""

from __future__ import annotations

import os
import socket

import pytest

from tests.kernel.support import model, packets
from tests.kernel.support.conversation import CLIENT, Conversation, serve
from tests.kernel.support.packets import Shape
from tests.kernel.support.two_cpus import Got, at_once
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, node_port
from tests.kernel.support.world import NODE, World

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.alone,  # two CPUs, each for itself
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
A_SECOND = 150  # pairs of packets, times --soak
BOTH = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def rounds(soak: float) -> int:
    return int(A_SECOND * soak)


def answered(world: World, got: Got, service: tuple[str, int], client: int, node: str = "") -> bool:
    """Does the backend's answer to this packet come out as the service's? `node`: the address that
    the backend answers to, if not the client's."""
    verdict, frame = got
    assert verdict == model.PASS
    sent = model.tuple_of(frame)
    family = socket.AF_INET if len(sent.src) == 4 else socket.AF_INET6
    backend, target = (socket.inet_ntop(family, raw) for raw in (sent.dst, sent.src))
    shape = Shape(4 if len(sent.src) == 4 else 6, "udp" if sent.protocol == model.UDP else "tcp")
    ports = (sent.dport, sent.sport)
    reply = packets.frame(shape, backend, ports[0], node or target, ports[1], b"y", flags="SA")
    if node:
        reply = world.from_net(reply).frame
    back = model.tuple_of((world.to_net if node else world.to_pod)(reply).frame)
    said = (back.src, back.dst, back.sport, back.dport)
    return said == (model.packed(service[0]), sent.src, service[1], client)


@BOTH
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_two_first_packets(
    world: World, rounds: int, family: int, count: int, protocol: str
) -> None:
    """Both datagrams are answered; so is a SYN that was sent twice. They go to one backend."""
    shape = Shape(family, protocol)
    service = serve(world, shape, count)
    frames = [
        [
            packets.frame(shape, CLIENT[family], 20000 + number, service.addresses[0],
                          service.port, payload, flags="S")
            for payload in (b"", b"AAAA")
        ]
        for number in range(rounds)
    ]  # fmt: skip
    pairs = [(("entry_from_pod", a), ("entry_from_pod", b)) for a, b in frames]
    where = (service.addresses[0], service.port)
    for number, both in enumerate(at_once(world, pairs)):
        tuples = [model.tuple_of(frame) for _, frame in both]
        assert (tuples[0].dst, tuples[0].sport) == (tuples[1].dst, tuples[1].sport)
        for got in both:
            assert answered(world, got, where, 20000 + number)
    assert len(world.flows()) == 2 * rounds, "nothing is left of who came second"


@BOTH
def test_two_first_packets_masqueraded(world: World, rounds: int, family: int) -> None:
    """Each chose a port of the node's; one of them is given back."""
    shape = Shape(family, "udp")
    node_port(world, shape)
    world.configure(port_min=30000, port_max=65000)
    frames = [
        [
            packets.frame(shape, OUTSIDE[family], 20000 + number, NODE[family], NODE_PORT, payload)
            for payload in (b"", b"AAAA")
        ]
        for number in range(rounds)
    ]
    pairs = [(("entry_from_net", a), ("entry_from_net", b)) for a, b in frames]
    where = (NODE[family], NODE_PORT)
    for number, both in enumerate(at_once(world, pairs)):
        tuples = [model.tuple_of(frame) for _, frame in both]
        assert tuples[0].sport == tuples[1].sport
        for got in both:
            assert answered(world, got, where, 20000 + number, NODE[family])
    assert len(world.flows()) == 4 * rounds


@BOTH
def test_two_datagrams_leave_a_backend_that_stopped(world: World, rounds: int, family: int) -> None:
    shape = Shape(family, "udp")
    service = serve(world, shape, 3)
    talks = [Conversation(world, shape, service, 20000 + n) for n in range(rounds)]
    for talk in talks:
        talk.up(payload=b"x")
    world.set_backends(service, [e for e in service.backends if e != talks[0].backend])
    left = [talk for talk in talks if talk.backend == talks[0].backend]
    pairs = [
        (("entry_from_pod", talk.request(payload=b"1")), ("entry_from_pod", talk.request()))
        for talk in left
    ]
    where = (service.addresses[0], service.port)
    for talk, both in zip(left, at_once(world, pairs), strict=True):
        assert talk.backend
        for got in both:
            assert model.tuple_of(got[1]).dst != model.packed(talk.backend[0])
            assert answered(world, got, where, talk.sport)


@BOTH
def test_closes_that_cross(world: World, rounds: int, family: int) -> None:
    """Both FINs at once, then both acknowledgements: nothing of that is lost."""
    shape = Shape(family, "tcp")
    service = serve(world, shape)
    talks = [Conversation(world, shape, service, 20000 + n).open() for n in range(rounds)]
    fins = [
        (("entry_from_pod", talk.request("FA")), ("entry_to_pod", talk.reply("FA")))
        for talk in talks
    ]
    at_once(world, fins)
    assert {flow.state for flow in world.flows()} == {"fin_wait"}
    assert all({"fin", "first"} <= flow.flags for flow in world.flows())
    acks = []
    for talk in talks:
        up = talk.request("A", seq=talk.seq + 1, ack=talk.peer_seq + 1)
        down = talk.reply("A", seq=talk.peer_seq + 1, ack=talk.seq + 1)
        acks.append((("entry_from_pod", up), ("entry_to_pod", down)))
    at_once(world, acks)
    assert all("acked" in flow.flags for flow in world.flows())
    assert {flow.state for flow in world.flows()} == {"time_wait"}
    world.set_backends(service, [])
    for talk in talks:
        outcome = world.from_pod(talk.request("S", seq=9_000_000))
        assert outcome.reasons == {"no_endpoint": 1}
