"""Fragments: the first carries the ports, those that follow go where it went.

Those that come before it are tests/kernel/test_datapath_early_fragments.py's.
"""

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import CLIENT, PORT, Conversation, serve
from tests.kernel.support.fragments import joined, pieces
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import Outcome, World

pytestmark = pytest.mark.kernel
SHAPES = [
    *(Shape(family, protocol) for family in (4, 6) for protocol in ("udp", "tcp", "sctp")),
    Shape(4, "udp", zero=True),
    Shape(4, "udp", "options"),
    Shape(6, "udp", "hop"),
    Shape(4, "udp", vlans=1),
    Shape(6, "udp", vlans=2),
]
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)
SUMS = pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])


def _forwarded(outcome: Outcome, expected: bytes) -> bytes:
    assert (outcome.verdict, outcome.frame) == (model.PASS, expected)
    if IP in Ether(expected):
        checks.assert_sums(expected)
    return outcome.frame


@SUMS
@EACH
def test_a_new_flow_in_fragments(world: World, shape: Shape, flags: int) -> None:
    """The first one chooses, the rest follow, and the datagram is whole and right at the end."""
    talk = Conversation(world, shape, serve(world, shape))
    parts = pieces(talk.request("S", b"0123456789" * 160), number=321)
    assert len(parts) >= 3
    first = world.from_pod(parts[0], flags)
    talk.learn(first)
    assert talk.backend
    address, port = talk.backend
    out = [_forwarded(first, model.rewrite(parts[0], dst=address, dport=port))]
    for part in parts[1:]:
        out.append(_forwarded(world.from_pod(part, flags), model.rewrite(part, dst=address)))
    checks.assert_sums(joined(out))


@SUMS
@EACH
def test_answers_in_fragments(world: World, shape: Shape, flags: int) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    service = talk.address
    parts = pieces(talk.reply("A", b"9876543210" * 160), number=4321)
    out = [
        _forwarded(world.to_pod(parts[0], flags), model.rewrite(parts[0], src=service, sport=PORT))
    ]
    for part in parts[1:]:
        out.append(_forwarded(world.to_pod(part, flags), model.rewrite(part, src=service)))
    checks.assert_sums(joined(out))


@EACH
def test_datagrams_under_way_at_once(world: World, shape: Shape) -> None:
    """Several ports of one client, their fragments interleaved: told apart by their id."""
    service = serve(world, shape)
    talks = [Conversation(world, shape, service, sport=40000 + n).open() for n in range(8)]
    sets = [pieces(talk.request("A", b"x" * 1300), number=100 + n) for n, talk in enumerate(talks)]
    for index in range(len(sets[0])):
        for talk, parts in zip(talks, sets, strict=True):
            assert talk.backend
            address, port = talk.backend
            expected = model.rewrite(parts[index], dst=address, dport=port)
            _forwarded(world.from_pod(parts[index]), expected)


@EACH
def test_a_later_fragment_alone_goes_nowhere(world: World, shape: Shape) -> None:
    """It waits, and is counted only when its place is taken."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    parts = pieces(talk.request("A", b"x" * 1300), number=77)
    others = pieces(talk.request("A", b"x" * 1300), number=78)
    elsewhere = model.rewrite(parts[1], src={4: "10.1.0.77", 6: "fd00:1::77"}[shape.family])
    for part in (parts[1], others[1], elsewhere):
        outcome = world.from_pod(part)
        assert (outcome.verdict, outcome.reasons) == (model.DROP, {})


@EACH
def test_of_other_traffic_are_untouched(world: World, shape: Shape) -> None:
    serve(world, shape)
    elsewhere = {4: "198.51.100.9", 6: "2001:db8::9"}[shape.family]
    frame = packets.frame(shape, CLIENT[shape.family], 5, elsewhere, PORT, b"x" * 1300, flags="A")
    for part in pieces(frame, number=5):
        for outcome in (world.from_pod(part), world.to_pod(part)):
            assert (outcome.verdict, outcome.frame) == (model.PASS, part)


@EACH
def test_of_other_traffic_at_an_address_that_services_have_too(world: World, shape: Shape) -> None:
    """In the wrong order: nothing may be dropped there."""
    serve(world, shape)
    elsewhere = {4: "198.51.100.9", 6: "2001:db8::9"}[shape.family]
    world.mark_address(elsewhere)
    frame = packets.frame(shape, CLIENT[shape.family], 5, elsewhere, PORT, b"x" * 1300, flags="A")
    early = pieces(frame, number=4)[1:]
    for part in (*early, *pieces(frame, number=5)):
        outcome = world.from_pod(part)
        assert (outcome.verdict, outcome.frame) == (model.PASS, part)


@EACH
def test_of_a_backends_own_traffic_are_untouched(world: World, shape: Shape) -> None:
    """A backend that talks to the client of itself, from its service port or another."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    for port in (talk.backend[1], 7777):
        frame = packets.frame(shape, talk.backend[0], port, talk.client, 9, b"x" * 1300, flags="A")
        for part in pieces(frame, number=port):
            outcome = world.to_pod(part)
            assert (outcome.verdict, outcome.frame) == (model.PASS, part)


@EACH
def test_to_a_service_without_endpoints(world: World, shape: Shape) -> None:
    """The first is refused like any packet; the others are dropped, never answered."""
    talk = Conversation(world, shape, serve(world, shape, count=0))
    parts = pieces(talk.request("S", b"x" * 1300), number=9)
    assert world.from_pod(parts[0]).verdict == model.REDIRECT
    for part in parts[1:]:
        assert world.from_pod(part).verdict == model.DROP


@pytest.mark.parametrize("family", [4, 6])
def test_a_first_fragment_without_all_of_its_header(world: World, family: int) -> None:
    """Eight bytes of a TCP header (RFC 1858): the flags are missing, nobody may guess them."""
    shape = Shape(family, "tcp")
    talk = Conversation(world, shape, serve(world, shape))
    frame = talk.request("S", b"x" * 100)
    at = model.parse(frame)
    if family == 4:
        tiny = bytearray(frame[: at.transport + 8])
        tiny[at.network + 2 : at.network + 4] = (28).to_bytes(2, "big")
        tiny[at.network + 6] = 0x20
        model.fix_ipv4_sum(tiny, at.network, at.transport)
    else:
        tiny = bytearray(frame[: at.transport])
        tiny[at.network + 4 : at.network + 6] = (16).to_bytes(2, "big")
        tiny[at.network + 6] = 44
        tiny += bytes([6, 0, 0, 1, 0, 0, 0, 9]) + frame[at.transport : at.transport + 8]
    outcome = world.from_pod(bytes(tiny))
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"truncated": 1})
    assert not world.flows()
