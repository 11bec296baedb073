"""The clock of the data path: jiffies, which a program reads without a call.

Their rate (CONFIG_HZ) is told by the coarse clock's resolution, which is one of them. They begin
five minutes before they overflow 32 bits (INITIAL_JIFFIES) and follow CLOCK_MONOTONIC from boot on,
to about a tenth of a second; tests/kernel/test_kernel_clock.py compares.
"""

from __future__ import annotations

import functools
import math
import time

import msgspec

_CLOCK_MONOTONIC_COARSE = 6
_BEFORE_OVERFLOW_SECONDS = 300
_BEAT_SHIFT = 8  # BEAT_SHIFT of consts.h


class Clock(msgspec.Struct, frozen=True):
    """`rate`: jiffies per second. A beat is 256 of them: as 32-bit numbers, the unit of
    cell_state.seen and of every timeout."""

    rate: int

    def jiffies(self, monotonic: float) -> int:
        """Their number, all 64 bits, at a reading of time.monotonic()."""
        first = (1 << 32) - _BEFORE_OVERFLOW_SECONDS * self.rate
        return first + int(monotonic * self.rate)

    def beat(self, monotonic: float | None = None) -> int:
        """The beat at a reading of time.monotonic(), the current one by default."""
        seconds = time.monotonic() if monotonic is None else monotonic
        return self.jiffies(seconds) >> _BEAT_SHIFT & 0xFFFFFFFF

    def beats(self, seconds: float) -> int:
        """How many beats last at least that long."""
        return math.ceil(seconds * self.rate / (1 << _BEAT_SHIFT))

    def seconds(self, beats: int) -> float:
        """How long so many beats last."""
        return (beats << _BEAT_SHIFT) / self.rate


@functools.cache
def kernel_clock() -> Clock:
    """That of this machine."""
    return Clock(round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE)))
