"""The clock of what the agent alone keeps with service ports and backends (slow start, the end of
flows): CLOCK_MONOTONIC in ticks of 2^30 ns, about 1.07 s, whatever the kernel's HZ."""

from typing import Final

_SHIFT: Final = 30
TICK_SECONDS: Final = (1 << _SHIFT) / 1e9


def ticks(seconds: float) -> int:
    """Whole ticks that cover `seconds`; 0 only for 0."""
    return -(-int(seconds * 1_000_000_000) // (1 << _SHIFT))


def tick_at(seconds: float) -> int:
    """When CLOCK_MONOTONIC (time.monotonic) says `seconds`."""
    return int(seconds * 1_000_000_000) >> _SHIFT
