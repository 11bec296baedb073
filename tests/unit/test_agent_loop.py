"""The agent's loop: how long it waits, who acts and in which order, and what a signal does."""

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from lbctl.agent.loop import Guard, Loop, Readable, Reader, Signals, Timed, Timer

NOW = 1000.0


class Member:
    """A `Timed` that notes when it acted."""

    def __init__(self, name: str, due: float | None, acted: list[str]) -> None:
        self.name = name
        self.when = due
        self.acted = acted

    def due(self) -> float | None:
        return self.when

    def step(self, now: float) -> None:
        self.acted.append(self.name)
        self.when = None


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(time, "monotonic", lambda: NOW)
    return []


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_those_due_act_in_their_order_and_others_do_not(acted: list[str]) -> None:
    members = [
        Member("first", NOW - 1, acted),
        Member("never", None, acted),
        Member("later", NOW + 1, acted),
        Member("second", 0.0, acted),
    ]
    with Loop(members) as loop:
        loop.turn()
    assert acted == ["first", "second"]


def test_one_may_make_another_due_in_the_same_turn(acted: list[str]) -> None:
    follower = Member("follower", None, acted)
    cause = Timer(lambda: 0.0, lambda now: setattr(follower, "when", now))
    with Loop([cause, follower]) as loop:
        loop.turn()
    assert acted == ["follower"]


@pytest.mark.parametrize(
    ("due", "expected"),
    [([], None), ([None], None), ([NOW + 3, None, NOW + 2], 2.0), ([NOW + 3, NOW], 0.0)],
)
def test_it_waits_for_the_first_that_is_due(
    acted: list[str],
    due: list[float | None],
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float | None] = []

    def select(timeout: float | None) -> list[object]:
        waited.append(timeout)
        return []

    with Loop([Member(str(d), d, acted) for d in due]) as loop:
        monkeypatch.setattr(loop._selector, "select", select)
        loop.turn()
    assert waited == [expected]


def test_what_is_read_comes_before_what_is_due(
    acted: list[str], pipe: tuple[socket.socket, socket.socket]
) -> None:
    reader, writer = pipe
    readable = Reader(reader.fileno, lambda: acted.append(reader.recv(9).decode()))
    with Loop([Member("due", 0.0, acted), readable]) as loop:
        writer.send(b"read")
        loop.turn()
    assert acted == ["read", "due"]


def test_a_member_can_be_both(acted: list[str], pipe: tuple[socket.socket, socket.socket]) -> None:
    class Both(Member):
        def fileno(self) -> int:
            return pipe[0].fileno()

        def handle(self) -> None:
            self.when = NOW
            self.acted.append(pipe[0].recv(9).decode())

    both = Both("due", None, acted)
    assert isinstance(both, Readable)
    assert isinstance(both, Timed)
    with Loop([both]) as loop:
        pipe[1].send(b"read")
        loop.turn()
    assert acted == ["read", "due"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_whenever_it_came(number: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals, Loop([signals]) as loop:
        os.kill(os.getpid(), number)
        loop.turn()  # nothing is ever due: only the signal can end this
        assert signals.stopping
    assert signal.getsignal(number) is before


# Parts that fail


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOW]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def fail(*_: object) -> float:
    raise KeyError("what")


def test_a_part_that_fails_rests_and_the_others_go_on(clock: list[float]) -> None:
    acted: list[str] = []
    other = Timer(lambda: 0.0, lambda now: acted.append("other"))
    guard = Guard(lambda: clock[0])
    with Loop([Timer(lambda: 0.0, fail), other], guard) as loop:
        for _ in range(4):
            loop.turn()
        assert acted == ["other"] * 4
        assert guard.until("fail") == NOW + 1.0
        tried = 0
        for _ in range(120):
            clock[0] += 1.0
            before = guard.until("fail")
            loop.turn()
            tried += guard.until("fail") != before
        assert tried == 7  # after 1, 2, 4, 8, 16, 30, 30 s
        (problem,) = guard.problems()
        assert problem == "part fail of the agent: KeyError: 'what'; tried again 7 times"


def test_a_part_that_works_again_is_no_problem(clock: list[float]) -> None:
    guard = Guard(lambda: clock[0])
    works = [False]

    def act(now: float) -> None:
        if not works[0]:
            raise ValueError

    with Loop([Timer(lambda: 0.0, act), Timer(lambda: 0.0, lambda now: None)], guard) as loop:
        for _ in range(70):
            loop.turn()
            clock[0] += 1.0
        assert guard.problems()
        works[0] = True
        for _ in range(120):
            loop.turn()
            clock[0] += 1.0
        assert guard.problems() == []


def test_what_cannot_be_read_does_not_turn_the_loop_in_circles(
    clock: list[float], pipe: tuple[socket.socket, socket.socket]
) -> None:
    reader, writer = pipe
    tries = []

    def handle() -> None:
        tries.append(clock[0])
        if len(tries) < 3:
            raise OSError("no")
        reader.recv(9)

    writer.send(b"x")
    busy = Timer(lambda: clock[0], lambda now: None)
    with Loop([Reader(reader.fileno, handle), busy], Guard(lambda: clock[0])) as loop:
        for _ in range(50):
            loop.turn()
            clock[0] += 0.1
    assert len(tries) == 3


def test_one_that_cannot_say_when_it_is_due_rests_too(clock: list[float]) -> None:
    guard = Guard(lambda: clock[0])
    with Loop([Timer(fail, lambda now: None), Timer(lambda: 0.0, lambda now: None)], guard) as loop:
        loop.turn()
        loop.turn()
    assert [fault.count for fault in guard._faults.values()] == [0]
