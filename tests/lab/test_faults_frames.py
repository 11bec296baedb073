"""Frames that no honest machine sends: not answered where that is wrong, and no harm to anybody."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from lbctl.lab.cluster import Lab
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, steady_lab, targets
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TARGET, ask, connected, endpoint
from tests.lab.support.labs import TCP as STREAM
from tests.lab.support.raw_frames import Wire, about, flags_of, mac_of, next_port, wire

pytestmark = pytest.mark.lab

SERVERS = ("pod2", "pod3")
EMPTY = Exposed("empty", 2)  # refused, hence what makes the node answer by itself
ONE = Exposed("one", 3)
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
ORIGIN = pytest.mark.parametrize("origin", ["outside", "pod1"])
MARTIANS = (
    ("127.0.0.1", "0.0.0.0", "224.0.0.1", "239.1.2.3", "255.255.255.255"),
    ("::1", "::", "ff02::1", "ff0e::1:2", "::ffff:127.0.0.1"),
)
ELSEWHERE = "02:11:22:33:44:55"  # nobody's, so that a bridge shows it to everybody
STRAYS = ("R", "RA", "SA", "A", "FA", "PA", "", "FPU", "SR", "SRA")  # flags of segments
MULTICASTS = ("01:00:5e:00:00:01", "33:33:00:00:00:01", "ff:ff:ff:ff:ff:ff")


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with steady_lab(make_lab, "ff", SERVERS, nodes=1, pods=3) as made:
        EMPTY.publish(made, [])
        ONE.publish(made, ["pod2"])
        yield made


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_is_harmed(traffic: Bystanders) -> Iterator[None]:
    yield
    traffic.unharmed()


@pytest.fixture(scope="module")
def backend(lab: Lab) -> Iterator[Wire]:
    """What a backend's link brings to it."""
    with wire(lab, "pod2") as made:
        yield made


def gateway(lab: Lab, origin: str) -> str:
    """The hardware address of the node towards a member."""
    found = lab.find(origin)
    return mac_of(lab, "node1", getattr(found, "interface", "eth0"))


def places(lab: Lab, family: int) -> list[tuple[str, int]]:
    """Every kind of address, of a service with endpoints and of one without."""
    return [
        service.where(lab, way, family)
        for service in (STEADY, EMPTY)
        for way in ("cluster", "node1", "ingress")
    ]


def packet(source: str, target: str, layer: Any) -> Any:
    return (IPv6 if ":" in target else IP)(src=source, dst=target) / layer


def probes(source: str, place: tuple[str, int], port: int) -> list[Any]:
    """A SYN and a datagram."""
    return [
        packet(source, place[0], TCP(sport=port, dport=place[1], flags="S")),
        packet(source, place[0], UDP(sport=port, dport=place[1]) / b"anyone there?"),
    ]


@FAMILY
@ORIGIN
def test_probes_of_honest_machines_are_answered(lab: Lab, origin: str, family: int) -> None:
    """What the silence of the other tests is compared with."""
    port, source = next_port(), lab.find(origin).addresses[family]
    with wire(lab, origin) as ear:
        for place in places(lab, family):
            for probe in probes(source, place, port):
                ear.send([Ether(src=ear.mac, dst=gateway(lab, origin)) / probe])
        # SYN+ACK, an answer, RST or port unreachable: for each of the twelve.
        ear.wait_for(lambda frames: len(about(frames, port)) >= 12)


@FAMILY
@ORIGIN
def test_a_martian_source_gets_no_answer(lab: Lab, backend: Wire, origin: str, family: int) -> None:
    port = next_port()
    backend.heard(0)
    with wire(lab, origin) as ear:
        mac = gateway(lab, origin)
        for source in MARTIANS[family]:
            for place in places(lab, family):
                ear.send(Ether(src=ear.mac, dst=mac) / p for p in probes(source, place, port))
        assert about(ear.heard(), port) == []
    assert about(backend.heard(0), port) == []


@FAMILY
def test_a_frame_that_is_not_for_this_machine_gets_no_answer(
    lab: Lab, backend: Wire, family: int
) -> None:
    port, source = next_port(), lab.outside.addresses[family]
    backend.heard(0)
    with wire(lab, "outside") as ear:
        for mac in (ELSEWHERE, *MULTICASTS):
            for place in places(lab, family):
                ear.send(Ether(src=ear.mac, dst=mac) / p for p in probes(source, place, port))
        assert about(ear.heard(), port) == []
    assert about(backend.heard(0), port) == []


@FAMILY
@ORIGIN
def test_segments_without_a_connection_reach_no_backend(
    lab: Lab, backend: Wire, origin: str, family: int
) -> None:
    """A reset is never answered (RFC 9293), anything else with a reset at most."""
    source = lab.find(origin).addresses[family]
    ports = {flags: next_port() for flags in STRAYS}
    backend.heard(0)
    with wire(lab, origin) as ear:
        ether = Ether(src=ear.mac, dst=gateway(lab, origin))
        for flags, port in ports.items():
            for address, number in places(lab, family):
                segment = TCP(sport=port, dport=number, flags=flags, seq=1000, ack=2000)
                ear.send([ether / packet(source, address, segment)])
        heard = ear.heard()
    for flags, port in ports.items():
        said = [flags_of(frame) for frame in about(heard, port)]
        assert len(said) <= (0 if "R" in flags else len(places(lab, family))), (flags, said)
        assert all("R" in answer for answer in said), (flags, said)
    came = backend.heard(0)
    assert [flags for flags, port in ports.items() if about(came, port)] == []


def pieces(family: int, source: str, place: tuple[str, int], port: int, order: str) -> list[Any]:
    """A datagram of 1,600 bytes in three fragments, in this order."""
    body = raw(packet(source, place[0], UDP(sport=port, dport=place[1]) / (b"\0" * 1592)))
    payload = body[(20, 40)[family] :]
    cuts = {"a": (0, 800), "b": (800, 1200), "c": (1200, 1600)}
    number, found = random.Random(port).getrandbits(16), []
    for letter in order:
        start, end = cuts[letter]
        more = int(end < 1600)
        if family:
            head: Any = IPv6(src=source, dst=place[0]) / IPv6ExtHdrFragment(
                nh=17, offset=start // 8, m=more, id=number
            )
        else:
            head = IP(src=source, dst=place[0], proto=17, id=number, frag=start // 8, flags=more)
        found.append(head / Raw(payload[start:end]))
    return found


@FAMILY
@ORIGIN
@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_fragments_in_any_order_arrive(
    lab: Lab, backend: Wire, order: str, origin: str, family: int
) -> None:
    """The backend, or the kernel before it, has all of the datagram."""
    port, source = next_port(), lab.find(origin).addresses[family]
    way = "node1" if origin == "outside" else "cluster"
    backend.heard(0)
    with wire(lab, origin) as ear:
        mac = gateway(lab, origin)
        for piece in pieces(family, source, ONE.where(lab, way, family), port, order):
            ear.send([Ether(src=ear.mac, dst=mac) / piece])
        ear.wait_for(lambda frames: about(frames, port) != [])  # the server answered


def odd_fragments(family: int, source: str, place: tuple[str, int], port: int) -> list[Any]:
    """Tiny, overlapping, beyond the end, without a beginning, without an end, of no length."""
    chance = random.Random(port)
    segment = raw(TCP(sport=port, dport=place[1], flags="S")) + bytes(40)
    shapes = [(0, 1, 8), (1, 0, 32), (0, 1, 13), (1, 1, 16), (2, 0, 8), (8189, 0, 60), (8191, 1, 8)]
    shapes += [(0, 1, 0), (0, 0, 20), (5, 1, 24), (0, 1, 24), (0, 1, 32)]
    found = []
    for number in (7, 7, chance.getrandbits(16)):
        for offset, more, size in shapes:
            if family:
                head: Any = IPv6(src=source, dst=place[0]) / IPv6ExtHdrFragment(
                    nh=6, offset=offset, m=more, id=number
                )
            else:
                head = IP(src=source, dst=place[0], proto=6, id=number, frag=offset, flags=more)
            found.append(head / Raw(segment[:size]))
    return found


def wrong_lengths(family: int, source: str, place: tuple[str, int], port: int) -> list[Any]:
    """Headers that say what is not so, one field at a time, and packets that end too early."""
    good = raw(probes(source, place, port)[0]), raw(probes(source, place, port)[1])
    found = []
    for data in good:
        start = (20, 40)[family]
        changes = (
            [
                (0, b"\x44"),
                (0, b"\x4f"),
                (0, b"\x40"),
                (2, b"\0\x10"),
                (2, b"\xff\xff"),
                (0, b"\x65"),
            ],
            [(4, b"\0\0"), (4, b"\xff\xff"), (4, b"\0\x07"), (0, b"\x45"), (6, b"\xff")],
        )[family]
        layer = [(start + 12, b"\x10"), (start + 12, b"\xf0"), (start + 4, b"\0\x03")]
        for place_, value in [*changes, *layer]:
            found.append(data[:place_] + value + data[place_ + len(value) :])
        found += [data[:length] for length in (1, 8, 19, start, start + 3, start + 7, start + 19)]
    return found


def header_chains(family: int, source: str, place: tuple[str, int], port: int) -> list[Any]:
    """Extension headers beyond reason (IPv6), and options (IPv4)."""
    segment = TCP(sport=port, dport=place[1], flags="S")
    if not family:
        options = (b"\x01" * 40, b"\x83\x27\x04" + bytes(36), b"\x07\x00" + bytes(38), b"\xff" * 40)
        return [IP(src=source, dst=place[0], options=Raw(o), ihl=15) / segment for o in options]
    base: Any = IPv6(src=source, dst=place[0])
    found = []
    for count in (1, 6, 8, 40):
        chain = base
        for _ in range(count):
            chain = chain / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
        found.append(chain / segment)
    found.append(base / IPv6ExtHdrHopByHop() / IPv6ExtHdrHopByHop() / segment)
    found.append(base / IPv6ExtHdrRouting(addresses=[place[0]], segleft=1) / segment)
    fragment = IPv6ExtHdrFragment(nh=44, offset=0, m=0, id=3)
    found.append(base / fragment / IPv6ExtHdrFragment(nh=6, offset=0, m=1, id=4) / segment)
    found += [IPv6(src=source, dst=place[0], nh=nh) / Raw(raw(segment)) for nh in (50, 51, 59, 255)]
    # A header that claims to go on beyond the packet.
    found.append(IPv6(src=source, dst=place[0], nh=60) / Raw(b"\x06\xff" + raw(segment)))
    return found


ODD = {"fragments": odd_fragments, "lengths": wrong_lengths, "chains": header_chains}


@FAMILY
@ORIGIN
@pytest.mark.parametrize("what", ODD)
def test_odd_packets_harm_nobody(
    lab: Lab, traffic: Bystanders, what: str, origin: str, family: int
) -> None:
    """And amplify nothing: at most one answer comes to a packet."""
    port, source = next_port(), lab.find(origin).addresses[family]
    kind = (b"\x08\x00", b"\x86\xdd")[family]
    with wire(lab, origin) as ear:
        ether = bytes.fromhex((gateway(lab, origin) + ear.mac).replace(":", "")) + kind
        sent = 0
        for place in places(lab, family):
            for odd in ODD[what](family, source, place, port):
                sent += ear.send([ether + raw(odd)])
        assert len(about(ear.heard(), port)) <= sent
    traffic.unharmed()


@FAMILY
@ORIGIN
def test_errors_with_forged_quotes_end_no_connection(
    lab: Lab, backend: Wire, origin: str, family: int
) -> None:
    """Errors about a living connection from machines that cannot know its numbers (RFC 5927), cut
    off quotes, quotes of other errors and of fragments."""
    me, address = lab.find(origin).addresses[family], STEADY.where(lab, "cluster", family)
    if origin == "outside":
        address = STEADY.where(lab, "node1", family)
    with connected(lab, origin, address[0], STREAM, port=address[1]) as sock:
        first = ask(sock, "before")
        port = sock.getsockname()[1]
        server = endpoint(lab, first.server).addresses[family]
        quotes = [
            packet(me, address[0], TCP(sport=port, dport=address[1], seq=0xDEADBEEF)),
            packet(address[0], me, TCP(sport=address[1], dport=port, seq=0xDEADBEEF)),
            packet(server, me, TCP(sport=TARGET, dport=port, seq=0xDEADBEEF)),
            packet(me, server, TCP(sport=port, dport=TARGET, seq=0xDEADBEEF)),
        ]
        with wire(lab, origin) as ear:
            ether = Ether(src=ear.mac, dst=gateway(lab, origin))
            for quote in quotes:
                for target in (address[0], server):
                    ear.send(ether / error for error in errors(family, me, target, quote))
            answers = [f for f in about(ear.heard(), port) if b"\xde\xad\xbe\xef" in f]
        assert answers == [], "an error was answered"
        assert ask(sock, "after").connection == first.connection


def errors(family: int, source: str, target: str, quote: Any) -> list[Any]:
    head = packet(source, target, Raw(b""))
    head.remove_payload()
    data = raw(quote)
    size = (20, 40)[family]
    inside = [data, data[: size + 8], data[: size + 4], data[: size - 1], b"\xff" * 40, b""]
    if family:
        made = [
            head / ICMPv6DestUnreach(type=kind, code=code) / Raw(piece)
            for kind, code in ((1, 4), (1, 0), (2, 0), (3, 0), (4, 1), (200, 0))
            for piece in inside
        ]
        nested = raw(IPv6(src=target, dst=source) / ICMPv6DestUnreach() / Raw(data))
        return [*made, head / ICMPv6DestUnreach() / Raw(nested)]
    made = [
        head / ICMP(type=kind, code=code, nexthopmtu=68) / Raw(piece)
        if kind == 3
        else head / ICMP(type=kind, code=code) / Raw(piece)
        for kind, code in ((3, 3), (3, 1), (3, 4), (4, 0), (11, 0), (12, 0), (250, 0))
        for piece in inside
    ]
    nested = raw(IP(src=target, dst=source) / ICMP(type=3, code=3) / Raw(data))
    return [*made, head / ICMP(type=3, code=3) / Raw(nested)]
