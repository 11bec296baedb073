"""XDP equals TC, packet by packet at random: the same out and the same tables, or handed up.

As many packets per family as --soak says, a thousand for each second of it, half of them with next
hops that are kept: 100,000 by --soak 100.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.kernel.support import checks, dsr, model, packets
from tests.kernel.support.driver import (
    LINK,
    XDP_DROP,
    XDP_PASS,
    XDP_REDIRECT,
    DriverNode,
    Tables,
    both_ways,
    driver_node,
    patched,
    unfinished,
)
from tests.kernel.support.icmp_errors import ERRORS, ROUTER, error
from tests.kernel.support.mutations import mutated
from tests.kernel.support.packets import EXTRAS, Shape
from tests.kernel.support.uplink import OUTSIDE, Passage, node_port
from tests.kernel.support.world import World

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]
__all__ = ["driver_node"]
A_SECOND = 500
WHOLE = (41000, 41001)  # client's ports of what goes whole
ANEW = 250  # packets after which all flows are: many have been ended by then
PARSED_BY_SCAPY = 300
UNALLOCATED = {4: "10.96.3.4", 6: "fd00:96::34"}
# Three of each size, alike in all runs.
PAYLOADS = [
    random.Random(size + number).randbytes(size)
    for size in (0, 1, 2, 3, 17, 100, 1000, 1332, 1348, 1360, 1380)
    for number in range(3)
]
# As often as not TCP in its middle: what XDP is for.
FLAGS = ("A", "A", "PA", "PA", "A", "S", "SA", "FA", "R", "RA", "PAU", "", "F", "SF")


class Traffic:
    """Conversations of all kinds in one family, and packets of them by chance."""

    def __init__(
        self,
        node: DriverNode,
        family: int,
        dice: random.Random,
        frames: dict[tuple[object, ...], bytes],
    ) -> None:
        """`frames` are those that were built before."""
        self._dice = dice
        self._frames = frames
        self._family = family
        self._passages: list[Passage] = []
        for shape in (Shape(family, "tcp"), Shape(family, "udp")):
            dsr.serve_whole(node.world, shape, dice.choice(("udp", "ipip")))
            node_port(node.world, shape)
            for number in range(4):
                passage = node.passage(shape)
                passage.sport = 40000 + number
                self._open(passage, number)
                self._passages.append(passage)
            for call in itertools.product(("S", "A"), WHOLE):
                assert node.by_tc(self._whole(shape, *call)).verdict == XDP_REDIRECT

    def _open(self, passage: Passage, stage: int) -> None:
        """One that only asks, one that was closed, others in their middle."""
        passage.up("S")
        if stage == 0:
            return
        passage.down("SA")
        passage.up("A")
        if stage == 1 and passage.shape.protocol == "tcp":
            passage.close("client")

    def frame(self) -> bytes:
        """The next packet."""
        dice, passage = self._dice, self._dice.choice(self._passages)
        if dice.random() < 0.15:
            return self._special(passage)
        way = dice.choices(("nowhere", "request", "reply", "whole"), (2, 8, 8, 6))[0]
        frame = self._built(passage, way, dice.choice(FLAGS), dice.choice(PAYLOADS))
        if dice.random() < 0.2:
            frame += bytes(dice.randrange(1, 60))
        return mutated(frame, dice) if dice.random() < 0.4 else frame

    def _built(self, passage: Passage, way: str, flags: str, payload: bytes) -> bytes:
        """Building one takes longer than all that is done with it."""
        told = (passage.shape, passage.sport, passage.port, passage.seq, passage.peer_seq)
        key = (*told, way, flags, payload)
        if key not in self._frames:
            if way == "whole":
                made = self._whole(passage.shape, flags, WHOLE[passage.sport % len(WHOLE)], payload)
            elif way == "nowhere":
                place = (OUTSIDE[self._family], 40000, UNALLOCATED[self._family], 80)
                made = packets.frame(passage.shape, *place, payload, flags=flags)
            else:
                made = (passage.request if way == "request" else passage.reply)(flags, payload)
            self._frames[key] = made
        return self._frames[key]

    def _whole(self, shape: Shape, flags: str, sport: int, payload: bytes = b"x") -> bytes:
        """To a service whose endpoint gets packets as they are."""
        return dsr.call(shape, flags, payload, sport=sport)

    def _special(self, passage: Passage) -> bytes:
        """One that a driver has to leave alone, whole but for what makes it so."""
        dice, shape = self._dice, passage.shape
        kind = dice.choice(("extra", "error", "lifetime", "unfinished"))
        if kind == "extra":  # IPv4 options, IPv6 extension headers
            passage = replace(
                passage, shape=shape._replace(extra=dice.choice(EXTRAS[self._family]))
            )
        request = dice.random() < 0.5
        frame = passage.request("A", b"ask") if request else passage.reply("A", b"answer")
        if kind == "error":
            to = passage.client if request else passage.node
            about = frame[model.parse(frame).network :]
            return error(shape, ROUTER[self._family], to, about, dice.choice(list(ERRORS[4])))
        if kind == "lifetime":
            at = model.parse(frame).network + (8 if self._family == 4 else 7)
            return patched(frame, at, dice.choice((b"\0", b"\1")))
        return unfinished(frame) if kind == "unfinished" else frame


def judge(node: DriverNode, frame: bytes, dice: random.Random, seen: Counter[int]) -> None:
    """By the driver, then the same by TC from the same beginning."""
    before = Tables(node.world)
    got = node.by_driver(frame)
    seen[got.verdict] += 1
    if got.verdict == XDP_PASS:
        assert got.frame == frame
        assert got.reasons == {}
        assert before.differing() == []
        if dice.random() < 0.3:  # so that flows go on
            node.world.from_net(frame)
        return
    before.restore()
    got, expected, differing = both_ways(node, frame)
    assert differing == []
    assert got.verdict == expected.verdict
    assert got.reasons == expected.reasons
    if got.verdict == XDP_REDIRECT:
        end = model.parse(got.frame).end
        assert got.frame[LINK:end] == expected.frame[LINK:]


def is_right(frame: bytes) -> bool:
    """Are its sums? A mutation may have left none."""
    try:
        checks.assert_sums(frame)
    except Exception:  # noqa: BLE001 - scapy has many ways to say no
        return False
    return True


def is_outer(frame: bytes) -> bool:
    """Has it got an outer header, which IPv6 has without a sum?"""
    at = model.parse(frame)
    port = frame[at.transport + 2 : at.transport + 4]
    return at.protocol in dsr.IN_IP.values() or port == dsr.DSR_PORT.to_bytes(2)


@pytest.mark.parametrize("family", [4, 6])
def test_what_the_driver_does_tc_would_have_done(
    driver_node: DriverNode, world: World, soak: float, family: int
) -> None:
    dice = random.Random(2026 + family)
    seen: Counter[int] = Counter()
    count, parsed = int(A_SECOND * soak), 0
    devices = world.hash("xdp_devices").read_all()
    traffic: Traffic | None = None
    frames: dict[tuple[object, ...], bytes] = {}
    for number in range(count):
        if number % ANEW == 0 or traffic is None:
            world.reset()
            world.hash("xdp_devices").put_many(*devices)
            driver_node.send_on()
            traffic = Traffic(driver_node, family, dice, frames)
        frame = traffic.frame()
        try:
            judge(driver_node, frame, dice, seen)
        except AssertionError as error:
            raise AssertionError(f"packet {number}: {error}\n in {frame.hex()}") from error
        if parsed < PARSED_BY_SCAPY and is_right(frame):
            parsed += 1
            out = driver_node.by_driver(frame)
            if out.verdict == XDP_REDIRECT and not is_outer(out.frame):
                checks.assert_sums(out.frame)
    for verdict in (XDP_DROP, XDP_PASS, XDP_REDIRECT):
        assert seen[verdict] > count // 50, seen
