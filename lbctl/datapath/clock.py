"""The programs' clock as the control plane needs it: whole beats, of 32 bits, that wrap."""

from ebpf.kernel.clock import kernel_clock
from lbctl.datapath.consts import BEAT_SHIFT

_MOST = 0x7FFFFFFF  # ages may be negative


def beats(seconds: float) -> int:
    """Whole beats that cover `seconds`, no more than cells can tell; 0 only for 0."""
    return min(_MOST, kernel_clock().beats(seconds))


def seconds(beats: int) -> float:
    """How long so many take."""
    return kernel_clock().seconds(beats)


def beat_began(monotonic: float) -> int:
    """When the beat of this reading of time.monotonic() began, in ns of the same clock."""
    clock = kernel_clock()
    passed = clock.jiffies(monotonic) % (1 << BEAT_SHIFT)
    return int((monotonic - passed / clock.rate) * 1e9)


def current_beat() -> int:
    """As the programs have it now, give or take one."""
    return kernel_clock().beat()
