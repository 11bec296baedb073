"""Work that is handed to a thread now and then: what ends by an error or hangs delays nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from lbctl.errands import _ABANDONED, Errand
from lbctl.threads import UNREADY_SECONDS

PATIENCE = 10.0
SECONDS = 5.0


class Clock:
    """Moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def errand(clock: Clock) -> Errand:
    return Errand("test", SECONDS, clock=clock)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


def fail() -> None:
    raise ValueError("no good")


def test_one_at_a_time(errand: Errand, gate: threading.Event) -> None:
    done: list[int] = []
    assert errand.send(lambda: done.append(int(gate.wait(PATIENCE))))
    assert errand.busy
    assert not errand.send(lambda: done.append(2))
    assert errand.due() == SECONDS
    gate.set()
    assert errand.join(PATIENCE)
    assert not errand.busy
    assert errand.due() is None
    assert done == [1]
    assert errand.restarts == 0


def test_who_waits_is_woken(clock: Clock) -> None:
    woken = threading.Event()
    Errand("test", SECONDS, wake=woken.set, clock=clock).send(fail)
    assert woken.wait(PATIENCE)


def test_failing_for_a_minute_is_a_problem_until_it_succeeds(errand: Errand, clock: Clock) -> None:
    for _ in range(3):
        assert errand.send(fail)
        assert errand.join(PATIENCE)
        errand.check()
        assert errand.problem == ""
        clock.now += UNREADY_SECONDS / 3
    assert errand.problem == "thread test: ValueError: no good; begun anew 3 times"
    assert errand.send(lambda: None)
    assert errand.join(PATIENCE)
    errand.check()
    assert errand.problem == ""


def test_what_hangs_is_left_to_itself_and_the_next_begins(
    errand: Errand, clock: Clock, gate: threading.Event
) -> None:
    errand.send(lambda: fail() if gate.wait(PATIENCE) else None)
    clock.now += SECONDS
    assert not errand.busy
    assert errand.restarts == 1
    (abandoned,) = errand._abandoned
    assert errand.send(lambda: None)
    assert errand.join(PATIENCE)
    gate.set()
    abandoned.join(PATIENCE)
    errand.check()
    clock.now += UNREADY_SECONDS
    assert errand.problem == ""  # what the late one came to is of no interest any more


def test_no_more_than_a_few_hang_at_once(
    errand: Errand, clock: Clock, gate: threading.Event
) -> None:
    begun = 0
    for _ in range(50):
        begun += errand.send(lambda: fail() if gate.wait(PATIENCE) else None)
        clock.now += SECONDS
    assert begun == _ABANDONED
    assert errand.busy
    assert "stuck" in errand.problem
