"""What is none of this node's business: frames for other machines, and senders that cannot be."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.support import model, packets
from tests.kernel.support.conversation import SERVICE, serve
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, TCP_SHAPES, Shape
from tests.kernel.support.uplink import NODE_PORT, OUTSIDE, Passage, node_port
from tests.kernel.support.world import NODE, World

pytestmark = pytest.mark.kernel
OTHER_MACHINES = {
    "another machine's": bytes.fromhex("020000000003"),
    "all": b"\xff" * 6,
    "a group's": bytes.fromhex("01005e000001"),
}
SHAPES = [*PLAIN, *SCTP_SHAPES, Shape(4, "tcp", vlans=1)]
MARTIANS = {
    4: ("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "255.255.255.255"),
    6: ("::", "::1", "ff02::1", "ff0e::1:2", "::ffff:10.1.0.2", "::ffff:0.0.0.0"),
}
# Odd, but somebody's.
HOSTS = {
    4: ("1.0.0.0", "126.255.255.255", "128.0.0.1", "223.255.255.255", "240.0.0.1"),
    6: ("::2", "::1:0:1", "1::1", "fe00::1", "::fffe:10.1.0.2", "2001:db8::1"),
}


@pytest.mark.parametrize("target", OTHER_MACHINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frames_for_others_are_left_alone(world: World, shape: Shape, target: str) -> None:
    """Whether a flow is known, could begin, or would be refused."""
    service = node_port(world, shape)
    world.add_service(SERVICE[shape.family], 80, shape.protocol)
    known = Passage(world, shape)
    known.up("S")
    before = world.flows()
    for frame in (
        known.request("A", b"x"),
        Passage(world, shape, sport=41000).request(),
        Passage(world, shape, sport=41001).request("A"),
        packets.frame(shape, OUTSIDE[shape.family], 40000, SERVICE[shape.family], 80, flags="S"),
        packets.frame(shape, OUTSIDE[shape.family], 40000, SERVICE[shape.family], 81, flags="S"),
    ):
        frame = OTHER_MACHINES[target] + frame[6:]
        outcome = world.from_net(frame)
        assert (outcome.verdict, outcome.frame, outcome.reasons) == (model.PASS, frame, {})
    assert len(world.flows()) == len(before)
    assert world.service_counts(service)["connections"] == 1
    known.up("A", b"x")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_pods_frames_are_served_whomever_they_name(world: World, shape: Shape) -> None:
    """A bridge marks what it forwards between its ports as another machine's."""
    service = serve(world, shape)
    place = (OUTSIDE[shape.family], 40000, service.addresses[0], service.port)
    frame = packets.frame(shape, *place, flags="S")
    outcome = world.from_pod(OTHER_MACHINES["another machine's"] + frame[6:])
    assert outcome.reasons == {"forwarded": 1}


@pytest.mark.parametrize("hook", ["from_net", "from_pod"])
@pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
def test_martians_are_never_answered_nor_remembered(world: World, shape: Shape, hook: str) -> None:
    node_port(world, shape)
    refusing = world.add_service(SERVICE[shape.family], 80, shape.protocol)
    for source in MARTIANS[shape.family]:
        assert model.no_hosts_own(source)
        for address, port, flags in (
            (NODE[shape.family], NODE_PORT, "S"),
            (NODE[shape.family], NODE_PORT, "A"),
            (refusing.addresses[0], 80, "S"),
            (refusing.addresses[0], 80, "PA"),
            (refusing.addresses[0], 81, "S"),
        ):
            frame = packets.frame(shape, source, 40000, address, port, b"x", flags=flags)
            outcome = getattr(world, hook)(frame)
            assert (outcome.verdict, outcome.frame) == (model.PASS, frame), source
            assert outcome.reasons == {"left_to_stack": 1}
    assert world.flows() == []


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_odd_hosts_are_hosts(world: World, shape: Shape) -> None:
    node_port(world, shape)
    for source in HOSTS[shape.family]:
        assert not model.no_hosts_own(source)
        frame = packets.frame(shape, source, 40000, NODE[shape.family], NODE_PORT, flags="S")
        assert world.from_net(frame).reasons == {"forwarded": 1}, source


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_address_is_taken_for_the_other_kind(
    shared_world: World, shape: Shape, data: st.DataObject
) -> None:
    """A SYN to a port of a live ClusterIP that nobody serves: refused, or left to the stack."""
    shared_world.reset()
    serve(shared_world, shape)
    family = shape.family
    ranges = ["0.0.0.0/0", "126.0.0.0/7", "224.0.0.0/3", "0.0.0.0/7"]
    if family == 6:
        ranges = ["::/0", "::/95", "::/126", "fe00::/7"]
    net = ipaddress.ip_network(data.draw(st.sampled_from(ranges)))
    first, last = int(net.network_address), int(net.broadcast_address)
    number = data.draw(st.integers(first, last))
    made = (ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address)(number)
    frame = packets.frame(shape, str(made), 40000, SERVICE[family], 81, flags="S")
    outcome = shared_world.from_net(frame)
    wanted = model.PASS if model.no_hosts_own(str(made)) else model.REDIRECT
    assert outcome.verdict == wanted, made
