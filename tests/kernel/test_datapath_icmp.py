"""ICMP errors about a flow: path-MTU discovery and "port unreachable" work through a service.

Whoever gets such an error must find in it the very packet it sent, as far as it is quoted.
"""

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
)

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import PORT, SECOND, Conversation, serve
from tests.kernel.support.icmp_errors import ERRORS, ROUTER, aged, error, quote_of
from tests.kernel.support.packets import PLAIN, Shape
from tests.kernel.support.world import Outcome, World

pytestmark = pytest.mark.kernel
KINDS = [(family, name) for family in (4, 6) for name in ERRORS[family]]
SUMS = pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
EACH = pytest.mark.parametrize(
    "shape",
    [
        *PLAIN,
        Shape(4, "sctp"),
        Shape(6, "sctp"),
        Shape(4, "udp", zero=True),
        Shape(4, "tcp", vlans=1),
        Shape(6, "udp", vlans=2),
    ],
    ids=str,
)


def _assert_error(
    outcome: Outcome, frame: bytes, src: str, dst: str, about: bytes, kind: str, size: int
) -> None:
    """The same error with these addresses, quoting `about`, with right sums."""
    assert outcome.verdict == model.PASS
    assert outcome.reasons == {"icmp_translated": 1}
    checks.assert_sums(outcome.frame)
    quoted = quote_of(outcome.frame)
    assert quoted == about[:size]
    out, before = model.tuple_of(outcome.frame), model.parse(frame)
    assert (out.src, out.dst) == (model.packed(src), model.packed(dst))
    at = model.parse(outcome.frame).transport
    assert outcome.frame[at : at + 2] == frame[before.transport : before.transport + 2], kind
    assert outcome.frame[at + 4 : at + 8] == frame[before.transport + 4 : before.transport + 8]
    assert len(outcome.frame) == len(frame)


@SUMS
@EACH
@pytest.mark.parametrize("sender", ["backend", "router"])
def test_to_the_client(world: World, shape: Shape, sender: str, flags: int) -> None:
    """About what the client sent: it sees its own packet, and the service as the sender, unless a
    router sent it."""
    talk = Conversation(world, shape, serve(world, shape))
    sent = talk.request("S", b"request" * 10)
    translated = talk.up("S", b"request" * 10).frame
    assert talk.backend
    source = talk.backend[0] if sender == "backend" else ROUTER[shape.family]
    seen_as = talk.address if sender == "backend" else source
    for size in (1232, 48 if shape.family == 6 else 28):
        frame = error(shape, source, talk.client, aged(translated), size=size)
        outcome = world.to_pod(frame, flags)
        _assert_error(outcome, frame, seen_as, talk.client, aged(sent), "unreachable", size)


@SUMS
@EACH
def test_to_the_backend(world: World, shape: Shape, flags: int) -> None:
    """About what the backend answered: its own packet, from the client, sent to the backend."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    sent = talk.reply("PA", b"answer" * 10)
    translated = talk.down("PA", b"answer" * 10).frame
    assert talk.backend
    for size in (1232, 48 if shape.family == 6 else 28):
        frame = error(shape, talk.client, talk.address, aged(translated), size=size)
        outcome = world.from_pod(frame, flags)
        _assert_error(outcome, frame, talk.client, talk.backend[0], aged(sent), "unreachable", size)


@pytest.mark.parametrize(("family", "kind"), KINDS)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_every_kind_of_error(world: World, family: int, kind: str, protocol: str) -> None:
    shape = Shape(family, protocol)
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    sent = talk.request("PA", b"request")
    translated = talk.up("PA", b"request").frame
    frame = error(shape, ROUTER[family], talk.client, aged(translated), kind)
    outcome = world.to_pod(frame)
    _assert_error(outcome, frame, ROUTER[family], talk.client, aged(sent), kind, 1232)
    sent = talk.reply("PA", b"answer")
    translated = talk.down("PA", b"answer").frame
    frame = error(shape, talk.client, talk.address, aged(translated), kind)
    outcome = world.from_pod(frame)
    _assert_error(outcome, frame, talk.client, talk.backend[0], aged(sent), kind, 1232)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_with_a_translated_source_port(world: World, shape: Shape) -> None:
    """The quote shows the client's own port again."""
    Conversation(world, shape, serve(world, shape, count=1)).open()
    talk = Conversation(world, shape, serve(world, shape, 1, SECOND[shape.family])).open()
    assert talk.seen_port != talk.sport
    assert talk.backend
    sent = talk.request("PA", b"request")
    translated = talk.up("PA", b"request").frame
    frame = error(shape, talk.backend[0], talk.client, aged(translated))
    outcome = world.to_pod(frame)
    _assert_error(outcome, frame, talk.address, talk.client, aged(sent), "", 1232)
    sent = talk.reply("PA", b"answer")
    translated = talk.down("PA", b"answer").frame
    frame = error(shape, talk.client, talk.address, aged(translated))
    outcome = world.from_pod(frame)
    _assert_error(outcome, frame, talk.client, talk.backend[0], aged(sent), "", 1232)


@pytest.mark.parametrize("shape", [Shape(4, "tcp", "options"), Shape(6, "udp", "hop")], ids=str)
def test_about_packets_with_options(world: World, shape: Shape) -> None:
    """What is quoted has headers between its addresses and its ports: translated, or passed as it
    is, but never half."""
    talk = Conversation(world, shape, serve(world, shape))
    sent = talk.request("S", b"request")
    translated = talk.up("S", b"request").frame
    frame = error(shape, ROUTER[shape.family], talk.client, aged(translated))
    outcome = world.to_pod(frame)
    assert outcome.verdict == model.PASS
    checks.assert_sums(outcome.frame)
    assert quote_of(outcome.frame) in (aged(sent), aged(translated))


@EACH
def test_about_other_traffic_is_untouched(world: World, shape: Shape) -> None:
    """Direct traffic to a backend, and traffic that never met us."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    strangers = [
        packets.frame(shape, talk.client, 5, *talk.backend, b"x" * 20, flags="A"),
        packets.frame(shape, talk.client, 5, ROUTER[shape.family], PORT, b"x" * 20, flags="A"),
    ]
    for about in strangers:
        frame = error(shape, ROUTER[shape.family], talk.client, aged(about))
        for outcome in (world.to_pod(frame), world.from_pod(frame)):
            assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_that_lie_about_their_quote(world: World, shape: Shape) -> None:
    """Cut off anywhere, or filled with anything: unchanged or right, never an accident."""
    talk = Conversation(world, shape, serve(world, shape))
    translated = aged(talk.up("S", b"request").frame)
    assert talk.backend
    for size in range(0, len(translated), 3):
        for filler in (b"", b"\0" * 60, b"\xff" * 60):
            frame = error(shape, talk.backend[0], talk.client, translated[:size] + filler)
            outcome = world.to_pod(frame)
            assert outcome.verdict in (model.PASS, model.DROP)
            assert len(outcome.frame) == len(frame)
            if outcome.verdict == model.PASS:
                checks.assert_sums(outcome.frame)


@pytest.mark.parametrize("family", [4, 6])
def test_echoes_are_no_errors(world: World, family: int) -> None:
    """A ping between pods passes, whatever its payload looks like."""
    shape = Shape(family, "udp")
    talk = Conversation(world, shape, serve(world, shape))
    translated = talk.up(payload=b"x").frame
    assert talk.backend
    echo = ICMP(type=0) if family == 4 else ICMPv6EchoReply()
    frame = bytes(packets.network(shape, talk.backend[0], talk.client) / echo / aged(translated))
    outcome = world.to_pod(frame)
    assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_errors_keep_no_flow_alive_and_end_none(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    translated = talk.up("PA", b"x").frame
    before = sorted((f.key, f.seen, f.state) for f in world.flows())
    world.to_pod(error(shape, ROUTER[shape.family], talk.client, aged(translated)))
    assert sorted((f.key, f.seen, f.state) for f in world.flows()) == before
