"""The agent's loop: how long it waits, who acts and in which order, and what a signal does."""

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from lbctl.agent.loop import Loop, Readable, Reader, Signals, Timed, Timer

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
