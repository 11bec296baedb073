"""The programs' clock: beats, the unit of what cells say of time, and of every timeout.

A beat is 2^BEAT_SHIFT jiffies, 0.25 to 2.6 s by the kernel's HZ: reading jiffies is a load, asking
any other clock a call. Jiffies follow CLOCK_MONOTONIC from a start of the kernel's own
(INITIAL_JIFFIES), to some hundredths of a second.
"""

import functools
import time

from lbctl.datapath import consts

_CLOCK_MONOTONIC_COARSE = 6  # of linux/time.h
_MASK = 0xFFFFFFFF  # cells keep 32 bits
_MOST = 0x7FFFFFFF  # and their ages may be negative
_BEFORE_WRAP_SECONDS = 300  # jiffies begin so long before 2^32


@functools.cache
def hz() -> int:
    """Jiffies per second: the coarse clock moves with each."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def beats(seconds: float) -> int:
    """Whole beats that cover `seconds`; 0 only for 0."""
    return min(_MOST, -(-int(seconds * hz() * 1000) // (1000 << consts.BEAT_SHIFT)))


def seconds(beats: int) -> float:
    """How long so many take."""
    return float(beats << consts.BEAT_SHIFT) / hz()


def later(beat: int, beats: int) -> int:
    """The beat that comes so many after another; they wrap."""
    return (beat + beats) & _MASK


def current_beat() -> int:
    """As the programs have it now, give or take one."""
    since_boot = time.clock_gettime_ns(time.CLOCK_MONOTONIC) * hz() // 1_000_000_000
    jiffies = since_boot + (1 << 32) - _BEFORE_WRAP_SECONDS * hz()
    return (jiffies >> consts.BEAT_SHIFT) & _MASK
