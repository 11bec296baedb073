"""How often an API server is asked while it fails, with a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbctl.sources.client import retry_after
from lbctl.sources.pace import RETRY_AFTER_LIMIT, Pace


class Clock:
    """Moves by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _pace(clock: Clock) -> Pace:
    return Pace(0.5, 30.0, clock=clock)


def test_the_first_wait_is_short_and_the_last_bounded() -> None:
    clock = Clock()
    pace = _pace(clock)
    delays = []
    for _ in range(20):
        delays.append(pace.failed())
        clock.now += delays[-1]
    assert delays[0] <= 0.5
    assert max(delays) <= 30.0
    assert min(delays[8:]) >= 22.5
    assert len(set(delays[8:])) > 1  # a thousand nodes do not come back in step


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.floats(0.0, 20.0))
@example([1, 5, 10, 5, 10, 5, 10], 0.0)
def test_faults_stay_below_the_rate_whatever_a_list_takes(
    attempts: list[int], lasting: float
) -> None:
    """Each attempt is a list of so many pages and a watch that lasts for a while and then fails."""
    clock = Clock()
    pace = _pace(clock)
    asked: list[float] = []
    for requests in attempts:
        for _ in range(requests):
            clock.now += pace.hold()
            pace.asked()
            asked.append(clock.now)
        clock.now += lasting
        clock.now += pace.failed()
    steady = [at for at in asked if at >= 1000.0 + 60.0]
    for at in steady:
        assert sum(at <= other < at + 60.0 for other in steady) < 30


def test_a_list_that_works_forgives_nothing() -> None:
    """Lists that are answered between watches that are refused: only time counts."""
    clock = Clock()
    pace = _pace(clock)
    asked = 0
    start = clock.now
    while clock.now < start + 600.0:
        pace.asked()
        pace.asked()
        asked += 2
        clock.now += pace.failed()
    assert asked / 10 < 30


def test_time_without_faults_forgives() -> None:
    clock = Clock()
    pace = _pace(clock)
    for _ in range(10):
        clock.now += pace.failed()
    clock.now += 59.0
    assert pace.failed() > 10.0
    clock.now += 200.0
    assert pace.failed() <= 0.5


def test_what_the_server_asks_for_is_honoured_and_bounded() -> None:
    pace = _pace(Clock())
    assert pace.failed(7.0) == 7.0
    assert pace.failed(1e9) == RETRY_AFTER_LIMIT


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Thu, 99 Foo 1970 00:00:00 GMT", 0.0),
        ("", 0.0),
        ("-5", 0.0),
        ("1e9", 0.0),
        ("nan", 0.0),
        ("\u00b2", 0.0),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert retry_after(text, now=lambda: 100.0) == seconds


@given(st.text())
def test_retry_after_of_anything(text: str) -> None:
    assert retry_after(text, now=lambda: 100.0) >= 0.0
