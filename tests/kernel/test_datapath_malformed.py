"""Packets whose headers are cut off or contradict themselves: counted, never read past, never
mis-sent."""

from collections.abc import Callable

import pytest
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, PadN

from tests.kernel.support import model, packets
from tests.kernel.support.conversation import CLIENT, PORT, SERVICE, Conversation, serve
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel

Change = Callable[[bytearray, model.Layout], None]


def _patch(where: str, offset: int, value: bytes) -> Change:
    """Puts bytes at an offset from the network or the transport header."""

    def change(frame: bytearray, at: model.Layout) -> None:
        start = getattr(at, where) + offset
        frame[start : start + len(value)] = value

    return change


def _cut(beyond: int, *, of: str = "transport") -> Change:
    """Ends the packet so many bytes behind the start of a header, and says so in its length."""

    def change(frame: bytearray, at: model.Layout) -> None:
        end = getattr(at, of) + beyond
        del frame[end:]
        length = end - at.network - (0 if at.family == 4 else 40)
        field = at.network + (2 if at.family == 4 else 4)
        frame[field : field + 2] = max(0, length).to_bytes(2, "big")

    return change


MALFORMED, TRUNCATED = {"malformed": 1}, {"truncated": 1}

# What is dropped when it is for a service: protocol, change, counters.
TRANSPORT: dict[str, tuple[str, Change, dict[str, int]]] = {
    "tcp without all of its header": ("tcp", _cut(19), TRUNCATED),
    "tcp without its flags": ("tcp", _cut(12), TRUNCATED),
    "tcp without its ports": ("tcp", _cut(3), TRUNCATED),
    "tcp without anything": ("tcp", _cut(0), TRUNCATED),
    "tcp header shorter than itself": ("tcp", _patch("transport", 12, b"\x40"), MALFORMED),
    "tcp header of no length": ("tcp", _patch("transport", 12, b"\x00"), MALFORMED),
    "tcp header longer than the packet": ("tcp", _patch("transport", 12, b"\xf0"), {}),
    "udp without all of its header": ("udp", _cut(7), TRUNCATED),
    "udp without its ports": ("udp", _cut(2), TRUNCATED),
    "udp without anything": ("udp", _cut(0), TRUNCATED),
    "udp length below its header": ("udp", _patch("transport", 4, b"\0\7"), MALFORMED),
    "udp length of nothing": ("udp", _patch("transport", 4, b"\0\0"), MALFORMED),
    "udp length beyond the packet": ("udp", _patch("transport", 4, b"\xff\xff"), {}),
    "sctp without all of its header": ("sctp", _cut(11), TRUNCATED),
    "sctp without anything": ("sctp", _cut(0), TRUNCATED),
}


def _changed(frame: bytes, change: Change) -> bytes:
    at = model.parse(frame)
    out = bytearray(frame)
    change(out, at)
    if at.family == 4:
        model.fix_ipv4_sum(out, at.network, at.network + 20)
    return bytes(out)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vlans", [0, 1])
@pytest.mark.parametrize("case", TRANSPORT)
def test_transport_headers(world: World, family: int, vlans: int, case: str) -> None:
    """Dropped and counted, without and with a flow; the flow survives."""
    protocol, change, reasons = TRANSPORT[case]
    shape = Shape(family, protocol, vlans=vlans)
    talk = Conversation(world, shape, serve(world, shape))
    for flags in ("S", "A"):
        outcome = world.from_pod(_changed(talk.request(flags, b"payload"), change))
        assert outcome.verdict == model.DROP
        assert outcome.reasons == reasons or (not reasons and outcome.reasons in _EITHER)
        if flags == "S":
            talk.open()
    talk.up("A", b"fine")
    talk.down("A", b"fine")
    assert len(world.flows()) == 2


_EITHER = (MALFORMED, TRUNCATED)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("outer", [False, True], ids=["", "a service's by another port"])
@pytest.mark.parametrize("case", TRANSPORT)
def test_they_are_none_of_our_business_elsewhere(
    world: World, family: int, outer: bool, case: str
) -> None:
    """Also at an address that services have, but not for themselves."""
    protocol, change, _ = TRANSPORT[case]
    shape = Shape(family, protocol)
    serve(world, shape)
    elsewhere = {4: "198.51.100.9", 6: "2001:db8::9"}[family]
    if outer:
        world.mark_address(elsewhere)
    whole = packets.frame(shape, CLIENT[family], 5, elsewhere, PORT, b"payload", flags="S")
    frame = _changed(whole, change)
    for outcome in (world.from_pod(frame), world.to_pod(frame)):
        assert (outcome.verdict, outcome.frame) == (model.PASS, frame)
        assert outer or not outcome.reasons


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("case", TRANSPORT)
def test_from_a_backend(world: World, family: int, case: str) -> None:
    """Dropped, or passed as it is: never half translated."""
    protocol, change, _ = TRANSPORT[case]
    shape = Shape(family, protocol)
    talk = Conversation(world, shape, serve(world, shape)).open()
    frame = _changed(talk.reply("A", b"payload"), change)
    outcome = world.to_pod(frame)
    assert outcome.verdict in (model.DROP, model.PASS)
    if outcome.verdict == model.PASS:
        assert outcome.frame == frame
    talk.down("A", b"fine")


IP_HEADERS: dict[str, tuple[int, Change]] = {
    "version 5": (4, _patch("network", 0, b"\x55")),
    "version 6 in IPv4": (4, _patch("network", 0, b"\x65")),
    "header of 16 bytes": (4, _patch("network", 0, b"\x44")),
    "header of no length": (4, _patch("network", 0, b"\x40")),
    "total length below the header": (4, _patch("network", 2, b"\0\x13")),
    "total length of nothing": (4, _patch("network", 2, b"\0\0")),
    "total length beyond the frame": (4, _patch("network", 2, b"\xff\xff")),
    "version 4 in IPv6": (6, _patch("network", 0, b"\x40")),
    "version 0": (6, _patch("network", 0, b"\x00")),
    "payload length beyond the frame": (6, _patch("network", 4, b"\xff\xff")),
}


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("vlans", [0, 2])
@pytest.mark.parametrize("case", IP_HEADERS)
def test_ip_headers_are_left_to_the_stack(
    world: World, protocol: str, vlans: int, case: str
) -> None:
    """Counted as malformed or truncated, and passed for the stack to drop."""
    family, change = IP_HEADERS[case]
    shape = Shape(family, protocol, vlans=vlans)
    talk = Conversation(world, shape, serve(world, shape)).open()
    frame = bytearray(talk.request("A", b"payload"))
    change(frame, model.parse(bytes(frame)))
    outcome = world.from_pod(bytes(frame))
    assert (outcome.verdict, outcome.frame) == (model.PASS, bytes(frame))
    assert outcome.reasons in _EITHER
    reply = bytearray(talk.reply("A", b"payload"))
    change(reply, model.parse(bytes(reply)))
    outcome = world.to_pod(bytes(reply))
    assert (outcome.verdict, outcome.frame) == (model.PASS, bytes(reply))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("vlans", [1, 2])
def test_ip_headers_that_are_cut_off(world: World, family: int, vlans: int) -> None:
    """At every byte, down to a tag without anything behind it.

    (Only with tags: a test run takes no untagged frame without a whole IP header.)
    """
    shape = Shape(family, "udp", vlans=vlans)
    talk = Conversation(world, shape, serve(world, shape)).open()
    for frame in (talk.request(payload=b"x"), talk.reply(payload=b"x")):
        for size in range(15, model.parse(frame).transport):
            for outcome in (world.from_pod(frame[:size]), world.to_pod(frame[:size])):
                assert (outcome.verdict, outcome.frame) == (model.PASS, frame[:size])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_cut_off_at_every_byte_with_a_length_that_lies(world: World, protocol: str) -> None:
    """The frame ends early, its headers do not know: passed as it is, or dropped."""
    for family in (4, 6):
        shape = Shape(family, protocol, "options" if family == 4 else "all")
        talk = Conversation(world, shape, serve(world, shape)).open()
        for frame in (talk.request("A", b"payload"), talk.reply("A", b"payload")):
            for size in range(14 + 40, len(frame)):
                for outcome in (world.from_pod(frame[:size]), world.to_pod(frame[:size])):
                    assert (outcome.verdict, outcome.frame) == (model.PASS, frame[:size])


@pytest.mark.parametrize("tags", [3, 4])
@pytest.mark.parametrize("family", [4, 6])
def test_more_tags_than_two_are_not_followed(world: World, family: int, tags: int) -> None:
    talk = Conversation(world, Shape(family, "tcp"), serve(world, Shape(family, "tcp")))
    plain = talk.request("S")
    frame = plain[:12] + b"\x81\x00\x00\x05" * tags + plain[12:]
    outcome = world.from_pod(frame)
    assert (outcome.verdict, outcome.frame) == (model.PASS, frame)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_as_many_extension_headers_as_are_followed(world: World, protocol: str) -> None:
    """Six, and no more."""
    shape = Shape(6, protocol)
    serve(world, shape, count=1)
    for count in (6, 7, 8, 30):
        outcome = world.from_pod(_with_headers(shape, count))
        if count <= 6:
            assert outcome.reasons == {"forwarded": 1}
        else:
            assert (outcome.verdict, outcome.reasons) == (model.DROP, {"too_many_headers": 1})
    assert len(world.flows()) == 2


def _with_headers(shape: Shape, count: int) -> bytes:
    out = packets.network(shape, CLIENT[6], SERVICE[6])
    for _ in range(count):
        out /= IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
    return bytes(out / packets.transport(shape, 5, PORT, b"x", **_flags(shape)))


def _flags(shape: Shape) -> dict[str, str]:
    return {"flags": "S"} if shape.protocol == "tcp" else {}


@pytest.mark.parametrize("extra", ["hop", "destination", "routing", "atomic", "all"])
def test_extension_headers_that_are_cut_off(world: World, extra: str) -> None:
    """At every byte, with a payload length that says so."""
    shape = Shape(6, "udp", extra)
    talk = Conversation(world, shape, serve(world, shape))
    frame = talk.request(payload=b"x")
    at = model.parse(frame)
    for beyond in range(40, at.transport - at.network):
        outcome = world.from_pod(_changed(frame, _cut(beyond, of="network")))
        assert outcome.verdict == model.DROP, beyond
        assert outcome.reasons in _EITHER, beyond
    assert not world.flows()


def test_an_extension_header_that_says_it_is_longer_than_the_packet(world: World) -> None:
    shape = Shape(6, "udp", "hop")
    talk = Conversation(world, shape, serve(world, shape))
    frame = bytearray(talk.request(payload=b"x"))
    frame[14 + 40 + 1] = 255
    outcome = world.from_pod(bytes(frame))
    assert outcome.verdict == model.DROP
    assert outcome.reasons in _EITHER


def test_no_next_header(world: World) -> None:
    """Protocol 59: a packet that ends with its headers has no port, so none that is served."""
    serve(world, Shape(6, "tcp"))
    frame = bytes(packets.network(Shape(6), CLIENT[6], SERVICE[6], nh=59) / b"12345678")
    assert world.from_pod(frame).reasons == {"unknown_port": 1}
