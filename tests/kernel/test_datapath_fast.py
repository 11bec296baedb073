"""Packets that pass the stack by come out as those that it forwards, and only where they may."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests.kernel.support import checks, packets
from tests.kernel.support.conversation import BACKENDS, CLIENT, PORT, SERVICE, serve
from tests.kernel.support.packets import PLAIN, TCP_SHAPES, Shape
from tests.kernel.support.router import FAR, NEAR, Router
from tests.kernel.support.world import World, beat

pytestmark = pytest.mark.kernel

SHAPES = pytest.mark.parametrize("shape", PLAIN, ids=str)
SPORT = 40000
_EPOCHS = itertools.count(1)  # the node's hops outlive a test
# Each CPU asks for itself, and that packet takes the stack.
ROUNDS = 12


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    made = Router(CLIENT.values())
    yield made
    made.close()


@pytest.fixture
def node(router: Router, world: World) -> Iterator[Router]:
    for device, ingress, egress in (
        (NEAR, "entry_from_pod", "entry_to_pod"),
        (FAR, "entry_from_net", "entry_to_net"),
    ):
        router.attach(world, device, "ingress", ingress)
        router.attach(world, device, "egress", egress)
    allow(router, world)
    open_way(world)
    yield router
    router.detach()


def allow(router: Router, world: World, **others: int) -> None:
    """What each device may be used for: everything but that the far end is no pod's."""
    flags = world.flag("FAST_FROM") | world.flag("FAST_NEIGH")
    wanted = {router.index(device): others.get(device, flags) for device in (NEAR, FAR)}
    keys, values = np.array(list(wanted), np.uint32), np.array(list(wanted.values()), np.uint32)
    world.hash("fast_devices").put_many(keys, values)


def open_way(world: World, beats: int = 1000, mtu: int = 0xFFFF) -> None:
    until = (beat() + beats) % (1 << 32)
    world.configure(fast_open=1, fast_until=until, fast_epoch=next(_EPOCHS), fast_mtu=mtu)


def passed(world: World) -> int:
    return int(world.array("cpus").records["passed"].sum())


def request(shape: Shape, flags: str = "A", payload: bytes = b"ask", hops: int = 64) -> bytes:
    seq = 1000 if "S" in flags else 1001
    tcp = {"flags": flags, "seq": seq, "ack": 0 if flags == "S" else 500001}
    fields = {{4: "ttl", 6: "hlim"}[shape.family]: hops}
    whole = packets.network(shape, CLIENT[shape.family], SERVICE[shape.family], **fields)
    return bytes(whole / packets.transport(shape, SPORT, PORT, payload, **tcp))


def answer(shape: Shape, flags: str = "A", payload: bytes = b"told") -> bytes:
    address, port = BACKENDS[shape.family][0]
    seq = 500000 if "S" in flags else 500001
    tcp = {"flags": flags, "seq": seq, "ack": 1001}
    return packets.frame(shape, address, port, CLIENT[shape.family], SPORT, payload, **tcp)


def establish(node: Router, world: World, shape: Shape) -> None:
    """One packet after the other: none of these may pass the stack."""
    before = passed(world)
    if shape.protocol == "tcp":
        assert node.through(NEAR, [request(shape, "S", b"")], 1)
        assert node.through(FAR, [answer(shape, "SA", b"")], 1)
        assert node.through(NEAR, [request(shape, "A", b"")], 1)
    else:
        assert node.through(NEAR, [request(shape)], 1)
        world.configure(fast_open=0)
        assert node.through(FAR, [answer(shape)], 1)
        world.configure(fast_open=1)
    assert passed(world) == before


@SHAPES
def test_comes_out_as_if_the_stack_had_forwarded_it(
    node: Router, world: World, shape: Shape
) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    for device, frame in ((NEAR, request(shape)), (FAR, answer(shape))):
        world.configure(fast_open=0)
        [by_stack] = node.through(device, [frame], 1)
        checks.assert_sums(by_stack)
        world.configure(fast_open=1)
        before = passed(world)
        found = [node.through(device, [frame], 1) for _ in range(ROUNDS)]
        assert found == [[by_stack]] * ROUNDS
        assert ROUNDS - 4 <= passed(world) - before <= ROUNDS


@SHAPES
def test_both_directions_count_what_passes(node: Router, world: World, shape: Shape) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    before = {flow.reply: flow.packets for flow in world.flows()}
    for _ in range(ROUNDS):
        node.through(NEAR, [request(shape)], 1)
        node.through(FAR, [answer(shape)], 1)
    after = {flow.reply: flow.packets for flow in world.flows()}
    assert after == {reply: count + ROUNDS for reply, count in before.items()}


def never_passes(node: Router, world: World, device: str, frame: bytes, count: int = 1) -> None:
    """However often it comes."""
    before = passed(world)
    for _ in range(4):
        assert len(node.through(device, [frame], count)) == count
    assert passed(world) == before


def does_pass(node: Router, world: World, frame: bytes, rounds: int = ROUNDS) -> None:
    before = passed(world)
    for _ in range(rounds):
        assert node.through(NEAR, [frame], 1)
    assert passed(world) > before


@SHAPES
def test_nothing_passes_while_the_way_is_shut(node: Router, world: World, shape: Shape) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    world.configure(fast_open=0)
    never_passes(node, world, NEAR, request(shape))


@SHAPES
def test_nothing_passes_when_nobody_keeps_it_open(node: Router, world: World, shape: Shape) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    open_way(world, -3)
    never_passes(node, world, NEAR, request(shape))


@SHAPES
def test_another_epoch_asks_the_kernel_again(node: Router, world: World, shape: Shape) -> None:
    """In the old one a packet goes where it went, whatever the routes say by now."""
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    family, backend = f"-{shape.family}", BACKENDS[shape.family][0][0]
    node.change(family, "route", "add", "blackhole", backend)
    try:
        for _ in range(3):  # each CPU may have had to ask
            node.through(NEAR, [request(shape)], 1)
        open_way(world)
        assert node.through(NEAR, [request(shape)] * 4, 1) == []
    finally:
        node.change(family, "route", "del", "blackhole", backend)
    open_way(world)
    does_pass(node, world, request(shape))


@SHAPES
def test_nobody_passes_with_an_address_that_is_not_behind_his_device(
    node: Router, world: World, shape: Shape
) -> None:
    """Whether the stack validates sources or not."""
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    before = passed(world)
    node.through(FAR, [request(shape)] * 4, 0)
    assert passed(world) == before
    does_pass(node, world, request(shape), 4)  # and takes nothing from who is


@SHAPES
def test_the_last_hop_is_the_stacks_to_refuse(node: Router, world: World, shape: Shape) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape, hops=2))
    never_passes(node, world, NEAR, request(shape, hops=1), 0)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
@pytest.mark.parametrize("flags", ["FA", "RA", "SA"])
def test_what_may_end_a_connection_takes_the_stack(
    node: Router, world: World, shape: Shape, flags: str
) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    never_passes(node, world, NEAR, request(shape, flags, b""), 1)


@SHAPES
@pytest.mark.parametrize("device", [NEAR, FAR])
def test_a_device_that_the_agent_does_not_name_is_the_stacks(
    node: Router, world: World, shape: Shape, device: str
) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    allow(node, world, **{device: 0})
    open_way(world)
    never_passes(node, world, NEAR, request(shape))


@SHAPES
def test_where_others_have_a_say_about_what_comes_in_nothing_passes(
    node: Router, world: World, shape: Shape
) -> None:
    serve(world, shape, count=1)
    establish(node, world, shape)
    allow(node, world, **{NEAR: world.flag("FAST_NEIGH")})
    open_way(world)
    never_passes(node, world, NEAR, request(shape))


@SHAPES
@pytest.mark.parametrize("locked", [False, True], ids=["any-route", "this-route"])
def test_what_is_longer_than_the_way_allows_takes_the_stack(
    node: Router, world: World, shape: Shape, locked: bool
) -> None:
    """Which tells its sender, or cuts it. Of a route's MTU the kernel's helper speaks only if that
    is locked; else the agent has to tell."""
    serve(world, shape, count=1)
    establish(node, world, shape)
    backend, via = BACKENDS[shape.family][0][0], {4: "169.254.2.2", 6: "fe80::22"}[shape.family]
    family, route = f"-{shape.family}", [backend, "via", via, "dev", FAR]
    if locked:
        node.change(family, "route", "add", *route, "mtu", "lock", "1300")
    open_way(world, mtu=0xFFFF if locked else 1300)
    header = len(request(shape, payload=b"")) - 14
    try:
        does_pass(node, world, request(shape, payload=b"x" * (1300 - header)))
        before = passed(world)
        for _ in range(4):
            node.through(NEAR, [request(shape, payload=b"x" * (1301 - header))], 0)
        assert passed(world) == before
    finally:
        if locked:
            node.change(family, "route", "del", *route)


@pytest.mark.parametrize("shape", TCP_SHAPES, ids=str)
def test_a_syn_ack_passes_once_it_is_known_where_to(
    node: Router, world: World, shape: Shape
) -> None:
    """The flow is what it would be else, and its SYN never passes."""
    serve(world, shape, count=1)
    establish(node, world, shape)
    does_pass(node, world, request(shape))
    for _ in range(3):
        node.through(FAR, [answer(shape)], 1)
    world.forget_flows()
    never_passes(node, world, NEAR, request(shape, "S", b""))
    before = passed(world)
    [out] = node.through(FAR, [answer(shape, "SA", b"")], 1)
    checks.assert_sums(out)
    assert passed(world) == before + 1
    assert node.through(NEAR, [request(shape)], 1)
    assert {flow.state for flow in world.flows()} == {"established"}
