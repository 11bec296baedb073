"""DSR: what is too big with its outer header, but may be cut, gets there in parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.support import model
from tests.kernel.support.driver import patched, unfinished
from tests.kernel.support.dsr import FORMS, OVERHEAD, Receiver, call, outer_of, serve_whole
from tests.kernel.support.fragments import cut, joined
from tests.kernel.support.packets import NODE_MAC, Shape
from tests.kernel.support.router import FAR, NEAR, Router
from tests.kernel.support.uplink import OUTSIDE, REMOTE
from tests.kernel.support.world import World

pytestmark = pytest.mark.kernel

LINK = 14
EACH = pytest.mark.parametrize("shape", [Shape(4, "tcp"), Shape(4, "udp")], ids=str)
# Towards the endpoint, and in how many parts 1500 bytes get there.
NARROW = pytest.mark.parametrize(("mtu", "parts"), [(1500, 2), (1400, 2), (576, 3)])
NUMBER = b"\x12\x34"  # of a datagram


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    made = Router([OUTSIDE[4]])
    yield made
    made.close()


@pytest.fixture
def node(router: Router, world: World) -> Iterator[Router]:
    router.attach(world, NEAR, "ingress", "entry_from_net")
    yield router
    router.detach()
    router.change("link", "set", FAR, "mtu", "1500")


def opened(node: Router, world: World, shape: Shape, form: str, mtu: int) -> list[bytes]:
    """A flow over a way of this MTU. Returns what has passed there."""
    serve_whole(world, shape, form)
    node.change("link", "set", FAR, "mtu", str(mtu))
    sent = node.through(NEAR, [call(shape, flags) for flags in ("S", "A")], 2)
    assert len(sent) == 2
    return sent


def sized(shape: Shape, size: int = 1500) -> bytes:
    """A packet that may be cut."""
    headers = len(call(shape, "A")) - LINK
    frame = call(shape, "A", (bytes(range(256)) * 6)[: size - headers], seq=2000)
    return patched(frame, LINK + 4, NUMBER + b"\0\0")


def failures(world: World) -> list[int]:
    """How often what may go wrong has."""
    counts = world.counts()
    return [counts[name] for name in ("dsr_too_big", "rewrite_failed", "fragment_unmatched")]


def insides(sent: list[bytes], mtu: int) -> list[bytes]:
    """What is in the outer headers, each of which fits."""
    assert max(len(frame) - LINK for frame in sent) <= mtu
    return [frame[:LINK] + outer_of(frame, 4)[2] for frame in sent]


@FORMS
@NARROW
@EACH
def test_it_is_cut_and_each_part_gets_its_outer_header(
    node: Router, world: World, shape: Shape, mtu: int, parts: int, form: str
) -> None:
    first = opened(node, world, shape, form, mtu)
    before = failures(world)
    frame = sized(shape)
    sent = node.through(NEAR, [frame], parts)
    assert len(sent) == parts
    inner = insides(sent, mtu)
    assert joined(inner)[LINK:] == frame[LINK:]
    assert failures(world) == before  # nobody is told that it was too big
    receiver = Receiver(world, shape, form)
    here = bytes.fromhex(NODE_MAC.replace(":", ""))
    for beginning in first:
        receiver.take(here + beginning[6:])
    got = [receiver.world.from_net(here + part[6:]) for part in sent]
    assert {outcome.verdict for outcome in got} == {model.PASS}
    address, port = REMOTE[4]
    expected = model.rewrite(frame, dst=address, dport=port)
    assert joined([outcome.frame for outcome in got])[LINK:] == expected[LINK:]


@FORMS
@EACH
def test_fragments_are_cut_as_well(node: Router, world: World, shape: Shape, form: str) -> None:
    opened(node, world, shape, form, 1400)
    frame = call(shape, "A", bytes(range(256)) * 14, seq=2000)
    asked = cut(frame, int.from_bytes(NUMBER), (1480, 1480))
    sent = node.through(NEAR, asked, 5)
    assert len(sent) == 5  # the last one fits
    assert joined(insides(sent, 1400))[LINK:] == joined(asked)[LINK:]


@FORMS
@EACH
def test_parts_are_counted_once(node: Router, world: World, shape: Shape, form: str) -> None:
    opened(node, world, shape, form, 1500)
    before = counted(world)
    assert len(node.through(NEAR, [sized(shape)], 2)) == 2
    packets, carried = counted(world)
    assert (packets - before[0], carried - before[1]) == (2, 1500 + 20)


def counted(world: World) -> tuple[int, int]:
    """Packets and bytes of the only flow."""
    cells = world.array("cells4a").records["state"]
    return int(cells["packets"].sum()), int(cells["bytes"].sum() & ((1 << 48) - 1))


@FORMS
@EACH
def test_one_that_says_so_is_not_cut(node: Router, world: World, shape: Shape, form: str) -> None:
    opened(node, world, shape, form, 1500)
    large, fits = (
        patched(sized(shape, size), LINK + 6, b"\x40\0")
        for size in (1500, 1500 - OVERHEAD[form, 4])
    )
    before = world.counts()["dsr_too_big"]
    assert len(node.through(NEAR, [large, fits], 1)) == 1
    assert world.counts()["dsr_too_big"] == before + 1


@FORMS
@EACH
def test_one_whose_checksum_a_device_is_to_finish_is_not_cut(
    node: Router, world: World, shape: Shape, form: str
) -> None:
    """Nobody could, of its parts."""
    opened(node, world, shape, form, 1500)
    before = world.counts()["dsr_too_big"]
    fits = sized(shape, 1500 - OVERHEAD[form, 4])
    assert len(node.through(NEAR, [unfinished(sized(shape)), fits], 1)) == 1
    assert world.counts()["dsr_too_big"] == before + 1
