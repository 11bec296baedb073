"""Broken frames at random: nothing but the fields of a translation ever changes.

The seed is fixed; LBCTL_MUTATIONS sets how many frames (120,000 unless set), each of which goes
through both hooks.
"""

import os
import random

import pytest

from ebpf.errors import KernelError
from tests.kernel.support import checks, model
from tests.kernel.support.conversation import SERVICE
from tests.kernel.support.mutations import EMPTY, allowed, corpus, mutated, sums
from tests.kernel.support.world import SERVICE_RANGES, World

pytestmark = pytest.mark.kernel
FRAMES = int(os.environ.get("LBCTL_MUTATIONS", "120000")) // 2
BATCH = 500
PARSED_BY_SCAPY = 400


class Judge:
    """Looks at every frame that went in and what came out, and counts what it saw."""

    def __init__(self, family: int) -> None:
        self.services = {model.packed(SERVICE[family]), model.packed(EMPTY[family])}
        network, bits = SERVICE_RANGES[family == 6].split("/")
        self.range = model.packed(network)[: int(bits) // 8]
        self.seen = dict.fromkeys(("untouched", "dropped", "translated", "answered"), 0)

    def from_pod(self, frame: bytes, verdict: int, out: bytes) -> None:
        layout = self._layout(frame)
        self._look(frame, layout, verdict, out)
        if layout is None:
            # Extension headers may be what is wrong, in a packet to a service.
            assert out == frame
            assert verdict in (model.PASS, model.DROP)
            return
        destination = frame[layout.addresses[1]]
        if destination in self.services:
            return
        if destination.startswith(self.range):
            # Too many headers: nobody looks further.
            assert verdict == model.DROP or layout.extension_headers > 6
            assert verdict == model.DROP or out == frame
            return
        if layout.protocol == model.SCTP and verdict == model.DROP:
            return  # straight to a backend, under a port that cannot be had
        assert verdict == model.PASS
        source = slice(layout.transport, layout.transport + 2)
        start, size = {model.TCP: (16, 2), model.UDP: (6, 2)}.get(layout.protocol, (8, 4))
        place = slice(layout.transport + start, layout.transport + start + size)
        if out != frame:  # straight to a backend: its source port may have to change
            assert layout.has_ports
            _only(frame, out, [source, place])

    def to_pod(self, frame: bytes, verdict: int, out: bytes) -> None:
        layout = self._layout(frame)
        self._look(frame, layout, verdict, out)
        assert verdict in (model.PASS, model.DROP)
        if layout is None:
            assert (verdict, out) == (model.PASS, frame)

    def _layout(self, frame: bytes) -> model.Layout | None:
        try:
            return model.parse(frame)
        except model.Unreadable:
            return None

    def _look(self, frame: bytes, layout: model.Layout | None, verdict: int, out: bytes) -> None:
        assert verdict in (model.PASS, model.DROP, model.REDIRECT)
        if verdict == model.DROP:
            self.seen["dropped"] += 1
        elif verdict == model.REDIRECT:
            assert layout is not None
            self._answer(frame, layout, out)
            self.seen["answered"] += 1
        elif out == frame:
            self.seen["untouched"] += 1
        else:
            assert layout is not None, "translated what nobody can read"
            _only(frame, out, allowed(frame, layout))
            assert sums(out, layout) == sums(frame, layout)
            self.seen["translated"] += 1

    def _answer(self, frame: bytes, asked: model.Layout, out: bytes) -> None:
        """From whom it was sent to, to its sender, with right sums."""
        told = model.parse(out)
        assert frame[asked.addresses[1]] in self.services
        assert out[told.addresses[0]] == frame[asked.addresses[1]]
        assert out[told.addresses[1]] == frame[asked.addresses[0]]
        assert told.end == len(out)
        assert told.protocol in (model.TCP, model.ICMP, model.ICMP6)
        sums_right = asked.family == 6 or not sums(frame, asked)[0]
        # The header's sum is corrected, not made anew: one that was wrong stays wrong.
        if sums_right and self.seen["answered"] < PARSED_BY_SCAPY:
            checks.assert_sums(out)


def _only(frame: bytes, out: bytes, places: list[slice]) -> None:
    """Nothing else differs, and nothing was added or taken."""
    assert len(out) == len(frame)
    again = bytearray(out)
    for place in places:
        again[place] = frame[place]
    assert again == frame


@pytest.mark.parametrize("family", [4, 6])
def test_only_what_may_change_does(world: World, family: int) -> None:
    seeds, judge = corpus(world, family), Judge(family)
    dice = random.Random(20240 + family)
    for start in range(0, FRAMES, BATCH):
        frames = [mutated(dice.choice(seeds), dice) for _ in range(BATCH)]
        for entry, look in (("entry_from_pod", judge.from_pod), ("entry_to_pod", judge.to_pod)):
            try:
                results = world.run_many(entry, frames)
            except KernelError as error:
                raise AssertionError(f"{entry}, frames {start} on: {error.message}") from error
            for number, (frame, (verdict, out)) in enumerate(zip(frames, results, strict=True)):
                try:
                    look(frame, verdict, out)
                except (AssertionError, model.Unreadable) as error:
                    raise AssertionError(
                        f"{entry}, frame {start + number}: {error}\n in {frame.hex()}\n"
                        f"out {out.hex()}\nverdict {verdict}"
                    ) from error
    assert all(count > FRAMES // 100 for count in judge.seen.values()), judge.seen


def test_the_judge_sees_what_must_not_be() -> None:
    """A byte more, a byte less, one that may not change, a sum that was not kept."""
    judge = Judge(4)
    frame = bytes(12) + b"\x08\x00" + model.packed("1.2.3.4") * 12
    with pytest.raises(AssertionError):
        judge.from_pod(frame, model.PASS, frame[:-1])
    with pytest.raises(AssertionError):
        judge.to_pod(frame, model.REDIRECT, frame)
    whole = (
        bytes(12)
        + b"\x08\x00"
        + bytes.fromhex("45000020000000004011000001020304")
        + (model.packed(SERVICE[4]) + bytes.fromhex("11110050000c1234") + b"abcd")
    )
    for out in (
        whole[:-1] + b"x",
        model.rewrite(whole, dst="10.1.1.1")[:40] + whole[40:],
        whole[:22] + b"\1" + whole[23:],
    ):
        with pytest.raises(AssertionError):
            judge.from_pod(whole, model.PASS, out)
