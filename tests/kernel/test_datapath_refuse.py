"""Refusing: a RST or ICMP port unreachable, sent back the way the packet came, at once.

Not run with CHECKSUM_COMPLETE: an answer leaves by a device, which looks at no received sum.
"""

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest

from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import PLAIN, SHAPES, TCP_SHAPES, Shape
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel
ALL_SHAPES = [*SHAPES, Shape(6, "tcp", "most"), Shape(6, "udp", "most", vlans=1)]


def _assert_refused(world: World, frame: bytes, reason: str) -> None:
    """Answered as its protocol wants; dropped where the answer has no room for the headers."""
    outcome = world.from_pod(frame)
    layout = model.parse(frame)
    assert outcome.reasons == {reason: 1}
    assert not world.flows()
    headers = layout.transport - layout.network - 40
    if layout.protocol == model.TCP:
        assert outcome.verdict == model.REDIRECT
        checks.assert_reset(frame, outcome.frame)
    elif layout.family == 6 and headers > 48:
        assert outcome.verdict == model.DROP
    else:
        assert outcome.verdict == model.REDIRECT
        checks.assert_unreachable(frame, outcome.frame)


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
def test_no_endpoint(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=0))
    for payload in (b"", b"x", b"x" * 1400):
        _assert_refused(world, talk.request("S", payload), "no_endpoint")


@pytest.mark.parametrize("shape", ALL_SHAPES, ids=str)
def test_unknown_port_of_a_live_address(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape))
    talk.service.port += 1
    _assert_refused(world, talk.request("S", b"hello"), "unknown_port")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_port_of_another_protocol_is_unknown(world: World, shape: Shape) -> None:
    other = shape._replace(protocol="udp" if shape.protocol == "tcp" else "tcp")
    talk = Conversation(world, other, serve(world, shape))
    _assert_refused(world, talk.request("S", b"hello"), "unknown_port")


@pytest.mark.parametrize(
    "shape", [s for s in ALL_SHAPES if s.protocol == "tcp" and s.extra != "all"], ids=str
)
def test_tcp_in_midstream(world: World, shape: Shape) -> None:
    """Sequence and acknowledgement as RFC 9293 wants them, for every mix of flags."""
    talk = Conversation(world, shape, serve(world, shape), seq=0xFFFFFFFA)
    for flags in ("A", "PA", "FA", "F", "FPU", ""):
        for payload in (b"", b"0123456789"):
            _assert_refused(world, talk.request(flags, payload), "no_flow_reset")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_tcp_options_and_data_of_a_syn(world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=0))
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("WScale", 7)]
    for payload in (b"", b"fast open"):
        frame = packets.frame(
            shape, talk.client, 1, talk.address, PORT, payload, flags="S", seq=5, options=options
        )
        _assert_refused(world, frame, "no_endpoint")


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_reset_is_never_answered(world: World, shape: Shape) -> None:
    """Or two resets could bounce for ever."""
    empty = Conversation(world, shape, serve(world, shape, count=0))
    unknown = Conversation(world, shape, serve(world, shape, address=SERVICE[shape.family], port=9))
    unknown.service.port = 10
    for talk in (empty, unknown):
        for flags in ("R", "RA", "SR", "SRA"):
            assert world.from_pod(talk.request(flags)).verdict == model.DROP


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_padding_of_a_short_frame_is_no_payload(world: World, shape: Shape) -> None:
    """Ethernet's 60 bytes: what lies behind the IP packet is neither counted nor sent."""
    talk = Conversation(world, shape, serve(world, shape, count=0))
    for padding in (1, 2, 6, 40):
        frame = talk.request("S", b"") + b"\xee" * padding
        outcome = world.from_pod(frame)
        assert outcome.verdict == model.REDIRECT
        check = checks.assert_reset if shape.protocol == "tcp" else checks.assert_unreachable
        check(frame[:-padding], outcome.frame)


@pytest.mark.parametrize("family", [4, 6])
def test_ping_to_a_service_address(world: World, family: int) -> None:
    serve(world, Shape(family))
    echo = ICMP(type=8) if family == 4 else ICMPv6EchoRequest()
    for extra in ("", "options" if family == 4 else "hop"):
        frame = bytes(
            packets.network(Shape(family, extra=extra), CLIENT[family], SERVICE[family])
            / echo
            / b"ping payload"
        )
        _assert_refused(world, frame, "unknown_port")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("number", [47, 50, 103, 136, 253])
def test_protocols_without_ports(world: World, family: int, number: int) -> None:
    """GRE, ESP and others to a live address, and their first bytes are taken for no ports."""
    serve(world, Shape(family))
    field = {"proto": number} if family == 4 else {"nh": number}
    base = packets.network(Shape(family), CLIENT[family], SERVICE[family], **field)
    for payload in (b"\x12\x34\x00\x50" * 10, bytes(8)):
        _assert_refused(world, bytes(base / payload), "unknown_port")


@pytest.mark.parametrize("family", [4, 6])
def test_an_icmp_error_is_never_answered(world: World, family: int) -> None:
    """RFC 1122 3.2.2, RFC 4443 2.4: whatever it is about."""
    serve(world, Shape(family))
    error = ICMP(type=3, code=3) if family == 4 else ICMPv6DestUnreach(code=4)
    quote = packets.frame(Shape(family, "udp"), SERVICE[family], 9, CLIENT[family], 5, b"q" * 20)
    for quoted in (quote[14:], b"garbage!" * 5, quote[14:30]):
        frame = bytes(
            packets.network(Shape(family), CLIENT[family], SERVICE[family]) / error / quoted
        )
        outcome = world.from_pod(frame)
        assert outcome.verdict in (model.DROP, model.PASS)
        if outcome.verdict == model.PASS:
            assert outcome.frame == frame


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_without_the_kernels_rate_limit(world: World, shape: Shape) -> None:
    """A thousand in a row, each answered."""
    talk = Conversation(world, shape, serve(world, shape, count=0))
    frame = talk.request("S", b"x")
    verdicts = {verdict for verdict, _ in world.run_many("entry_from_pod", [frame] * 1000)}
    assert verdicts == {model.REDIRECT}


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_an_external_address_refuses_nothing_of_its_own(world: World, shape: Shape) -> None:
    """It may be the node's, with SSH behind it (rule 26); a service without endpoints is refused
    on every address (rule 9)."""
    address = {4: "198.51.100.7", 6: "2001:db8::7"}[shape.family]
    service = world.add_service(address, PORT, shape.protocol, cluster_ip=False)
    talk = Conversation(world, shape, service)
    _assert_refused(world, talk.request("S"), "no_endpoint")
    service.port = 22
    assert world.from_pod(talk.request("S")).verdict == model.PASS
