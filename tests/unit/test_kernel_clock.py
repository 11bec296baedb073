"""Seconds and beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpf.kernel.clock import Clock

clocks = st.sampled_from([100, 250, 300, 1000]).map(Clock)


@given(clocks, st.integers(0, 10**10))
def test_so_many_beats_last_at_least_as_long(clock: Clock, milliseconds: int) -> None:
    seconds = milliseconds / 1000
    beats = clock.beats(seconds)
    assert clock.seconds(beats) >= seconds
    assert clock.seconds(beats - 1) < seconds


@given(clocks, st.floats(0, 1e7), st.integers(0, 10_000))
def test_beats_count_up_and_stay_32_bits(clock: Clock, begin: float, beats: int) -> None:
    later = begin + clock.seconds(beats)
    assert 0 <= clock.beat(later) < 1 << 32
    assert (clock.beat(later) - clock.beat(begin)) % (1 << 32) in (beats - 1, beats, beats + 1)


def test_the_first_overflow_is_five_minutes_after_boot() -> None:
    clock = Clock(250)
    assert clock.jiffies(299) < 1 << 32 <= clock.jiffies(300)
    assert clock.beat(300) == 1 << 24
