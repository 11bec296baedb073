"""Which of the node's addresses a masqueraded flow takes: the one of the way to its backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tests.kernel.support import model
from tests.kernel.support.packets import PLAIN, SCTP_SHAPES, UDP_SHAPES, Shape
from tests.kernel.support.programs import Space, unique
from tests.kernel.support.uplink import REMOTE, Passage, node_port
from tests.kernel.support.world import NODE, World, mapped

pytestmark = pytest.mark.kernel
OVERLAY = {4: "10.244.1.1", 6: "fd00:244::1"}
EACH = pytest.mark.parametrize("shape", [*PLAIN, *SCTP_SHAPES], ids=str)
WAYS = pytest.mark.parametrize("by_device", [False, True], ids=["by route", "by device"])


class RoutedNode:
    """A namespace whose way to the backend is `left`, which has an address of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.space = Space(unique("route"))
        self.space.run(_forward)
        for family, length in ((4, "24"), (6, "64")):
            nodad = ["nodad"] * (family == 6)
            address = f"{OVERLAY[family]}/{length}"
            self.space.ip("addr", "add", address, "dev", "left", *nodad)
            self.space.ip("route", "add", REMOTE[family][0], "dev", "left")
        self.index = self.space.index("left")

    def by_device(self, **addresses: str) -> None:
        """As on a kernel before 6.7, with what the agent says of the device."""
        self.world.configure(flags=self.world.flag("CONFIG_MASQUERADE_BY_DEVICE"))
        table = self.world.hash("devices")
        value = np.zeros(1, table.spec.value.dtype)
        for name, address in addresses.items():
            value[name]["w"][0] = np.frombuffer(mapped(address), np.uint32)
        table.put(np.uint32(self.index).tobytes(), value.tobytes())

    def close(self) -> None:
        self.space.close()


def _forward() -> None:
    """In the calling thread's namespace."""
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with open(f"/proc/sys/net/{path}", "w") as stream:
            stream.write("1")


@dataclass
class RoutedPassage(Passage):
    """The same, in that namespace, with the address that the backend is to see."""

    place: RoutedNode | None = None
    source: str = ""

    @property
    def seen(self) -> str:
        return self.source

    def come_in(self, frame: bytes) -> bytes:
        assert self.place is not None
        return self.place.space.run(lambda: super(RoutedPassage, self).come_in(frame))


@pytest.fixture
def node(world: World) -> Iterator[RoutedNode]:
    made = RoutedNode(world)
    yield made
    made.close()


def passage(node: RoutedNode, shape: Shape, source: str, sport: int = 40000) -> RoutedPassage:
    return RoutedPassage(node.world, shape, sport, place=node, source=source)


def prepare(node: RoutedNode, shape: Shape, by_device: bool) -> None:
    node_port(node.world, shape)
    if by_device:
        node.by_device(node4=OVERLAY[4], node6=OVERLAY[6])


@WAYS
@EACH
def test_the_address_of_the_device_that_the_route_leads_to(
    node: RoutedNode, shape: Shape, by_device: bool
) -> None:
    prepare(node, shape, by_device)
    talk = passage(node, shape, OVERLAY[shape.family])
    talk.up("S")
    talk.down("SA")
    for size in (0, 1, 999):
        talk.up("A", b"q" * size)
        talk.down("PA", b"a" * size)
    assert len(node.world.flows()) == 4


@WAYS
@pytest.mark.parametrize("shape", UDP_SHAPES, ids=str)
def test_the_first_packet_may_be_too_large_for_the_way(
    node: RoutedNode, shape: Shape, by_device: bool
) -> None:
    """The stack tells its sender, and the flow is there."""
    prepare(node, shape, by_device)
    node.space.ip("link", "set", "left", "mtu", "1280")
    talk = passage(node, shape, OVERLAY[shape.family])
    talk.up(payload=b"q" * 1300)
    talk.up(payload=b"q" * 20)
    talk.down(payload=b"a" * 20)


@WAYS
@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_flow_outlives_the_address_and_the_next_takes_another(
    node: RoutedNode, shape: Shape, by_device: bool
) -> None:
    prepare(node, shape, by_device)
    first = passage(node, shape, OVERLAY[shape.family])
    first.up("S")
    first.down("SA")
    node.space.ip("link", "del", "left")
    first.up("A", b"more")
    first.down("A", b"still")
    second = passage(node, shape, NODE[shape.family], sport=40001)
    second.up("S")
    second.down("SA")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_a_device_of_which_nothing_is_said(node: RoutedNode, shape: Shape) -> None:
    """Its address of the other family alone, and then a device that is not in the map."""
    prepare(node, shape, by_device=False)
    other = 10 - shape.family
    node.by_device(**{f"node{other}": OVERLAY[other]})
    passage(node, shape, NODE[shape.family]).up("S")
    node.world.hash("devices").delete(np.uint32(node.index).tobytes())
    passage(node, shape, NODE[shape.family], sport=40001).up("S")


@pytest.mark.parametrize("shape", PLAIN, ids=str)
def test_the_routes_own_source_goes_before_the_devices(node: RoutedNode, shape: Shape) -> None:
    """`ip route … src`, as some networks set it; only the kernel knows of it."""
    prepare(node, shape, by_device=False)
    chosen = {4: "10.244.1.77", 6: "fd00:244::77"}[shape.family]
    length, nodad = ("/32", []) if shape.family == 4 else ("/128", ["nodad"])
    node.space.ip("addr", "add", chosen + length, "dev", "lo", *nodad)
    node.space.ip("route", "replace", REMOTE[shape.family][0], "dev", "left", "src", chosen)
    talk = passage(node, shape, chosen)
    talk.up("S")
    talk.down("SA")
    assert model.packed(chosen) != model.packed(OVERLAY[shape.family])
