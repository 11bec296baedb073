"""Fragments before the first of their datagram: they wait for it, and go where it goes.

On interfaces of a namespace, since a test run does not show what a program sends besides.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
from collections.abc import Iterator, Sequence

import pytest
from pyroute2 import netns

from ebpf.kernel.testrun import CHECKSUM_COMPLETE
from tests.kernel.support import checks, model, packets
from tests.kernel.support.conversation import CLIENT, PORT, Conversation, serve
from tests.kernel.support.fragments import cut, joined, offset_of
from tests.kernel.support.packets import Shape
from tests.kernel.support.programs import Space, unique
from tests.kernel.support.router import ADDRESSES, FAR, NEAR, TUNNEL, Router
from tests.kernel.support.two_cpus import at_once
from tests.kernel.support.uplink import NODE_PORT, node_port
from tests.kernel.support.world import NODE, World

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("shape", packets.UDP_SHAPES, ids=str)
SIZES = (400, 1200, 8)  # and a rest: the first is neither the longest nor the shortest
BODY = bytes(range(256)) * 8
ORDERS = list(itertools.permutations(range(len(SIZES) + 1)))
_numbers = itertools.count(1000)


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    made = Router(CLIENT.values())
    yield made
    made.close()


@pytest.fixture
def node(router: Router, world: World) -> Iterator[Router]:
    """One whose near interface is a pod's."""
    router.attach(world, NEAR, "ingress", "entry_from_pod")
    router.attach(world, NEAR, "egress", "entry_to_pod")
    yield router
    router.detach()


def arrived(frames: Sequence[bytes], expected: bytes) -> None:
    """These are all fragments of one datagram, each once: that of `expected`."""
    got = joined(sorted(frames, key=offset_of))
    checks.assert_sums(got)
    assert model.tuple_of(got) == model.tuple_of(expected)
    body = model.parse(got), model.parse(expected)
    assert got[body[0].transport : body[0].end] == expected[body[1].transport : body[1].end]


def shuffled(frame: bytes, order: Sequence[int]) -> list[bytes]:
    parts = cut(frame, next(_numbers), SIZES)
    return [parts[place] for place in order]


@FAMILIES
def test_requests_in_every_order(node: Router, world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    frame = talk.request(payload=BODY)
    expected = model.rewrite(frame, dst=talk.backend[0], dport=talk.backend[1])
    before = world.counts()["fragment_unmatched"]
    for order in ORDERS:
        arrived(node.through(NEAR, shuffled(frame, order), len(order)), expected)
    assert world.counts()["fragment_unmatched"] == before


def by_source(frames: Sequence[bytes], source: str) -> tuple[list[bytes], list[bytes]]:
    """Those from elsewhere, and those from there."""
    found: tuple[list[bytes], list[bytes]] = ([], [])
    for frame in frames:
        found[model.tuple_of(frame).src == model.packed(source)].append(frame)
    return found


@FAMILIES
def test_replies_in_every_order(node: Router, world: World, shape: Shape) -> None:
    """What is early passes as it is, since its port may be no service's, and a copy waits."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    frame = talk.reply(payload=BODY)
    expected = model.rewrite(frame, src=talk.address, sport=PORT)
    for order in ORDERS:
        parts = shuffled(frame, order)
        early = parts[: order.index(0)]
        got = node.through(FAR, parts, len(parts) + len(early))
        as_they_are, translated = by_source(got, talk.address)
        assert len(as_they_are) == len(early)
        arrived(translated, expected)


@FAMILIES
def test_a_new_flow_begins_with_the_first_fragment(
    node: Router, world: World, shape: Shape
) -> None:
    talk = Conversation(world, shape, serve(world, shape, count=1), sport=41000)
    ((address, port),) = talk.service.endpoints(shape.family)
    frame = talk.request(payload=BODY)
    got = node.through(NEAR, shuffled(frame, (3, 1, 0, 2)), 4)
    arrived(got, model.rewrite(frame, dst=address, dport=port))


@FAMILIES
def test_from_an_uplink_at_an_address_of_the_node(
    router: Router, world: World, shape: Shape
) -> None:
    """What is early passes as it is, since the node may be meant, and its copy waits. Answers come
    to the address of the way to the backend, which is not the primary one."""
    service = node_port(world, shape)
    ((address, port),) = service.endpoints(shape.family)
    client, node = CLIENT[shape.family], ADDRESSES[FAR][shape.family]
    for device in (NEAR, FAR):
        router.attach(world, device, "ingress", "entry_from_net")
        router.attach(world, device, "egress", "entry_to_net")
    try:
        frame = packets.frame(shape, client, 40000, NODE[shape.family], NODE_PORT, BODY)
        for order in ORDERS:
            count = order.index(0) + len(order)
            got = router.through(NEAR, shuffled(frame, order), count)
            as_they_are, out = by_source(got, node)
            assert len(as_they_are) == order.index(0)
            seen_port = model.tuple_of(joined(sorted(out, key=offset_of))).sport
            arrived(out, model.rewrite(frame, src=node, dst=address, sport=seen_port, dport=port))
            answer = packets.frame(shape, address, port, node, seen_port, BODY)
            back = router.through(FAR, shuffled(answer, order), len(order))
            arrived(
                back,
                model.rewrite(
                    answer, src=NODE[shape.family], dst=client, sport=NODE_PORT, dport=40000
                ),
            )
    finally:
        router.detach()


@FAMILIES
def test_on_a_device_without_link_header(router: Router, world: World, shape: Shape) -> None:
    """Requests come out of a tunnel, replies go into it."""
    client = {4: "10.9.0.2", 6: "fd00:9::2"}[shape.family]
    link = {4: bytes(12) + b"\x08\x00", 6: bytes(12) + b"\x86\xdd"}[shape.family]
    talk = Conversation(world, shape, serve(world, shape), client=client).open()
    assert talk.backend
    request, reply = talk.request(payload=BODY), talk.reply(payload=BODY)
    end = router.add_tunnel([client])
    try:
        router.attach(world, TUNNEL, "ingress", "entry_from_tunnel")
        router.attach(world, TUNNEL, "egress", "entry_to_tunnel")
        for order in ORDERS[::3]:
            packets_in = [part[len(link) :] for part in shuffled(request, order)]
            got = router.out_of_tunnel(end, packets_in, len(order))
            arrived(got, model.rewrite(request, dst=talk.backend[0], dport=talk.backend[1]))
            count = order.index(0) + len(order)
            sent = router.into_tunnel(end, shuffled(reply, order), count)
            left = [link + packet for packet in sent if packet[0] >> 4 == shape.family]
            as_they_are, out = by_source(left, talk.address)
            assert len(as_they_are) == order.index(0)
            arrived(out, model.rewrite(reply, src=talk.address, sport=PORT))
    finally:
        router.detach()
        os.close(end)


@FAMILIES
def test_six_fragments_of_several_datagrams_at_once(
    node: Router, world: World, shape: Shape
) -> None:
    rng = random.Random(6)
    service = serve(world, shape)
    for _ in range(5):
        frames, wanted = [], []
        for sport in (40001, 40002):
            talk = Conversation(world, shape, service, sport=sport).open()
            assert talk.backend
            frame = talk.request(payload=BODY)
            frames += cut(frame, next(_numbers), (256, 256, 512, 8, 512))
            wanted.append(model.rewrite(frame, dst=talk.backend[0], dport=talk.backend[1]))
        rng.shuffle(frames)
        got = node.through(NEAR, frames, len(frames))
        by_number: dict[int, list[bytes]] = {}
        for frame in got:
            fragment = model.parse(frame).fragment
            assert fragment
            by_number.setdefault(fragment[0], []).append(frame)
        for number, expected in zip(sorted(by_number), wanted, strict=True):
            arrived(by_number[number], expected)


@FAMILIES
def test_somebody_elses_datagrams_pass_in_every_order(
    node: Router, world: World, shape: Shape
) -> None:
    """From an endpoint's address, but another port: as they are, and nothing twice."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    frame = packets.frame(shape, talk.backend[0], 7777, talk.client, 9, BODY)
    for order in ORDERS[::5]:
        arrived(node.through(FAR, shuffled(frame, order), len(order)), frame)


@FAMILIES
def test_a_flood_costs_early_fragments_alone(node: Router, world: World, shape: Shape) -> None:
    """The oldest that wait go, and are counted; what is in order is not even asked."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    assert talk.backend
    frame = talk.request(payload=BODY)
    expected = model.rewrite(frame, dst=talk.backend[0], dport=talk.backend[1])
    flood = [cut(frame, number, SIZES)[2] for number in range(20000, 21000)]
    assert node.through(NEAR, flood, 1) == []
    slots = world.flag("STASH_SLOTS")
    assert world.counts()["fragment_unmatched"] >= len(flood) - slots
    arrived(node.through(NEAR, shuffled(frame, (0, 1, 2, 3)), 4), expected)
    arrived(node.through(NEAR, shuffled(frame, (2, 3, 0, 1)), 4), expected)


@FAMILIES
def test_what_waited_too_long_is_forgotten(node: Router, world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    parts = shuffled(talk.request(payload=BODY), (0, 1, 2, 3))
    assert node.through(NEAR, parts[1:2], 1) == []
    buckets = world.array("stash_buckets").records
    used = buckets["heads"] != 0
    assert used.sum() == 1
    buckets["heads"] -= used.astype("u8") * (2 << 32)  # two ticks ago
    got = node.through(NEAR, [parts[0], *parts[2:]], 4)
    assert sorted(offset_of(frame) for frame in got) == [0, 1600, 1608]


@FAMILIES
def test_one_that_is_too_large_to_wait(node: Router, world: World, shape: Shape) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    parts = cut(talk.request(payload=b"x" * 4000), next(_numbers), (800,))
    outcome = world.from_pod(parts[1])
    assert (outcome.verdict, outcome.reasons) == (model.DROP, {"fragment_unmatched": 1})
    assert not world.array("stash_buckets").records["heads"].any()


@FAMILIES
def test_on_the_way_out_only_an_endpoints_wait(router: Router, world: World, shape: Shape) -> None:
    ((address, port),) = node_port(world, shape).endpoints(shape.family)
    stranger = str(ipaddress.ip_address(address) + 100)
    router.attach(world, NEAR, "egress", "entry_to_net")
    try:
        for source, waits in ((stranger, False), (address, True)):
            frame = packets.frame(shape, source, port, CLIENT[shape.family], 40000, BODY)
            late = cut(frame, next(_numbers), SIZES)[1]
            assert len(router.through(FAR, [late], 1)) == 1
            assert world.array("stash_buckets").records["heads"].any() == waits
    finally:
        router.detach()


@pytest.mark.parametrize("flags", [0, CHECKSUM_COMPLETE], ids=["plain", "complete"])
@FAMILIES
def test_a_slot_holds_the_packet_and_whose_it_is(world: World, shape: Shape, flags: int) -> None:
    talk = Conversation(world, shape, serve(world, shape)).open()
    part = cut(talk.request(payload=BODY), 77, SIZES)[1]
    assert world.from_pod(part, flags).verdict == model.DROP
    (slot,) = [s for s in world.array("stash").records if s["length"]]
    packet = part[model.parse(part).network :]
    assert bytes(slot["bytes"][: slot["length"]]) == packet
    assert slot["key"]["proto"] == shape.number
    assert not slot["key"]["going_out"]


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """What test runs send besides goes to the loopback of a namespace."""
    space = Space(unique("loopback"))
    netns.pushns(space.name)
    try:
        yield
    finally:
        netns.popns()
        space.close()


@pytest.mark.alone  # two CPUs, each for itself
@pytest.mark.usefixtures("elsewhere")
@FAMILIES
def test_the_first_and_a_later_one_at_once(world: World, shape: Shape) -> None:
    """On two CPUs: either the later one sees the first one's ports, or the first one takes it
    along; never neither of the two, nor both."""
    talk = Conversation(world, shape, serve(world, shape)).open()
    frame = talk.request(payload=BODY)
    pairs = []
    for number in range(2000):
        first, later, *_ = cut(frame, number, (1200, 400))
        pairs.append((("entry_from_pod", first), ("entry_from_pod", later)))
    verdicts = [(first[0], later[0]) for first, later in at_once(world, pairs)]
    assert set(verdicts) <= {(model.PASS, model.PASS), (model.DROP, model.DROP)}
    assert not world.array("stash_buckets").records["heads"].any()
    assert len(set(verdicts)) == 2, "they never met"
