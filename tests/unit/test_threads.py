"""Threads that are looked after: what ends or hangs is replaced, and said if that does not help."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from lbctl.agent.keeper import Keeper
from lbctl.threads import UNREADY_SECONDS, Beat, Watched

PATIENCE = 10.0


class Clock:
    """Moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[[Callable[[Beat], None]], Watched]


@pytest.fixture
def watched(clock: Clock) -> Iterator[Make]:
    made: list[Watched] = []

    def make(work: Callable[[Beat], None]) -> Watched:
        made.append(Watched("test", work, clock=clock))
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()
        assert one.join(PATIENCE)


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("never happened")


def _advance(clock: Clock, one: Watched, seconds: float) -> None:
    for _ in range(int(seconds)):
        clock.now += 1.0
        one.check()
        time.sleep(0.002)


def test_an_error_costs_a_restart(clock: Clock, watched: Make) -> None:
    runs = []

    def work(beat: Beat) -> None:
        runs.append(beat)
        if len(runs) == 1:
            raise RecursionError("too deep")
        beat.stopping.wait(PATIENCE)

    one = watched(work)
    _until(lambda: not one.alive)
    one.check()
    assert one.due() == 1.0
    assert len(runs) == 1
    _advance(clock, one, 2)
    _until(lambda: len(runs) == 2)
    assert one.restarts == 1
    _advance(clock, one, 200)
    assert one.problem == ""
    assert one.restarts == 1


def test_a_thread_that_is_killed_is_replaced(clock: Clock, watched: Make) -> None:
    """Not by an Exception: as a signal handler, a debugger or sys.exit would."""
    runs = []

    def work(beat: Beat) -> None:
        runs.append(threading.get_ident())
        while not beat.stopping.wait(0.01):
            pass

    one = watched(work)
    _until(lambda: len(runs) == 1)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(runs[0]), ctypes.py_object(SystemExit)
    )
    _until(lambda: not one.alive)
    _advance(clock, one, 3)
    _until(lambda: len(runs) == 2)
    assert one.restarts == 1


def test_the_keeper_is_woken_when_a_thread_ends(clock: Clock) -> None:
    woken = threading.Event()

    def work(beat: Beat) -> None:
        raise ValueError("x")

    one = Watched("test", work, wake=woken.set, clock=clock)
    one.start()
    assert woken.wait(PATIENCE)


def test_a_stuck_thread_is_left_and_told_to_stop(clock: Clock, watched: Make) -> None:
    beats = []

    def work(beat: Beat) -> None:
        beats.append(beat)
        beat.within(10.0 if len(beats) == 1 else 1e9)
        beat.stopping.wait(PATIENCE)

    one = watched(work)
    _until(lambda: len(beats) == 1)
    _advance(clock, one, 9)
    assert not beats[0].stopping.is_set()
    _advance(clock, one, 3)
    _until(lambda: len(beats) == 2)
    assert beats[0].stopping.is_set()
    assert one.restarts == 1
    assert one.problem == ""


def test_dying_again_and_again_is_a_problem_after_a_minute(clock: Clock, watched: Make) -> None:
    def work(beat: Beat) -> None:
        raise ValueError("no good")

    one = watched(work)
    _until(lambda: not one.alive)
    one.check()
    _advance(clock, one, UNREADY_SECONDS - 2)
    assert one.problem == ""
    _advance(clock, one, 4)
    assert "no good" in one.problem
    # 1, 2, 4, 8, 16, 30 s: it is not started in a tight loop.
    assert 4 <= one.restarts <= 6


def test_no_more_than_a_few_are_left_to_themselves(clock: Clock) -> None:
    release = threading.Event()
    runs = []

    def work(beat: Beat) -> None:
        runs.append(beat)
        beat.within(1.0)
        release.wait(PATIENCE)

    one = Watched("test", work, clock=clock)
    one.start()
    _advance(clock, one, 1000)
    assert len(runs) <= 9
    assert one.problem
    release.set()
    one.stop()
    assert one.join(PATIENCE)


def test_a_keeper_without_anything_to_wait_for_asks_for_no_turn() -> None:
    keeper = Keeper()
    try:
        assert keeper.due() is None
        keeper.work("a piece of work", lambda beat: None)
        keeper.errand("an errand", 5.0)
        assert keeper.due() is None
    finally:
        keeper.close()


def test_a_keeper_tells_all_to_end_before_anybody_waits() -> None:
    keeper = Keeper()
    works = [keeper.work(f"work {n}", lambda beat: beat.pause(100 * PATIENCE)) for n in range(3)]
    for work in works:
        work.start()
    keeper.errand("errand", 1.0)
    keeper.stop()
    assert [work.join(PATIENCE) for work in works] == [True] * 3
    keeper.close()
