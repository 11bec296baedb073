"""The clock of the data path: jiffies, whose rate is the kernel's own business (CONFIG_HZ).

Jiffies start at a value of the kernel's own and follow CLOCK_MONOTONIC from then on, so one reading
of both gives the rest: `bpf_src/table.c` has the program that reads them.
"""

from __future__ import annotations

import time

import msgspec

# What kernels are configured with.
_RATES = (100, 250, 300, 1000)


class Clock(msgspec.Struct, frozen=True):
    """`rate` is jiffies per second, `offset` their number when CLOCK_MONOTONIC was zero, `shift`
    turns them to beats (BEAT_SHIFT)."""

    rate: int
    offset: float
    shift: int

    def beat(self, monotonic: float | None = None) -> int:
        """The beat at a reading of time.monotonic(), now by default; 32 bits, as in the maps."""
        seconds = time.monotonic() if monotonic is None else monotonic
        return int(self.offset + seconds * self.rate) >> self.shift & 0xFFFFFFFF

    def beats(self, seconds: float) -> int:
        """As many beats as last at least that long."""
        return -int(-seconds * self.rate // (1 << self.shift))

    def seconds(self, beats: int) -> float:
        """How long so many beats are."""
        return (beats << self.shift) / self.rate


def rate_of(jiffies: int, later: int, seconds: float) -> int:
    """The configured rate, from two readings that are `seconds` apart."""
    measured = (later - jiffies) / seconds
    return min(_RATES, key=lambda rate: abs(rate / measured - 1))
