"""The agent's loop: waits until something can be read or is due, and lets it act."""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Protocol, Self, TypeVar, runtime_checkable

import structlog

from lbctl.threads import CALM_SECONDS, UNREADY_SECONDS

T = TypeVar("T")

_FIRST_SECONDS = 1.0  # a part rests after an exception; doubled while it goes on
_LAST_SECONDS = 30.0


@runtime_checkable
class Readable(Protocol):
    """Acts when there is something to read."""

    def fileno(self) -> int:
        """Readable when `handle` has something to do."""

    def handle(self) -> object:
        """Take what there is, without waiting for more."""


@runtime_checkable
class Timed(Protocol):
    """Acts at times of its own choosing."""

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock: past for at once, None for
        never as things are."""

    def step(self, now: float) -> object:
        """Do it: some milliseconds of work at most."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A `Readable` made of two functions."""

    fileno: Callable[[], int]
    handle: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timer:
    """A `Timed` made of two functions."""

    due: Callable[[], float | None]
    step: Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """A part that fails: since when, until when it rests, how often it failed again, and why."""

    since: float
    until: float
    count: int
    why: str


class Guard:
    """Lets no part end the agent by an exception: it rests for a while, and acts again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._faults: dict[str, Fault] = {}
        self._log = structlog.get_logger()

    def run(self, name: str, act: Callable[[], T]) -> T | None:
        """What `act` returns, None if it failed."""
        try:
            done = act()
        except Exception as error:  # noqa: BLE001 - whatever it was: it must not end the agent
            self._note(name, error)
            return None
        fault = self._faults.get(name)
        if fault and self._clock() >= fault.until + CALM_SECONDS:
            del self._faults[name]
        return done

    def until(self, name: str) -> float:
        """How long this part rests; past if it does not."""
        fault = self._faults.get(name)
        return fault.until if fault else 0.0

    def problems(self) -> list[str]:
        """Sentences about parts that have been failing for longer than a minute."""
        now = self._clock()
        return [
            f"part {name} of the agent: {fault.why}; tried again {fault.count} times"
            for name, fault in self._faults.items()
            if now - fault.since >= UNREADY_SECONDS and now < fault.until + CALM_SECONDS
        ]

    def _note(self, name: str, error: Exception) -> None:
        now, before = self._clock(), self._faults.get(name)
        if before and now >= before.until + CALM_SECONDS:
            before = None  # that was long ago
        count = before.count + 1 if before else 0
        wait = min(_LAST_SECONDS, _FIRST_SECONDS * 2.0 ** min(count, 16))
        why = f"{type(error).__name__}: {error}"[:200]
        since = before.since if before else now
        self._faults[name] = Fault(since, now + wait, count, why)
        self._log.exception("a part of the agent failed", part=name, seconds=wait)


class Loop:
    """Turns; every turn waits once. Close it, or use it as a context manager."""

    def __init__(self, members: Sequence[Readable | Timed], guard: Guard | None = None) -> None:
        """Those due at the same time act in the order of `members`, which may be both kinds."""
        self._guard = guard or Guard()
        self._timed = [(_name(m), m) for m in members if isinstance(m, Timed)]
        self._selector = selectors.DefaultSelector()
        self._resting: list[tuple[str, Readable]] = []
        for member in members:
            if isinstance(member, Readable):
                self._register(_name(member), member)

    def turn(self) -> None:
        """Wait until something is to be done, and do that."""
        self._wake_readers()
        for key, _ in self._selector.select(self._timeout()):
            name, member = key.data
            self._guard.run(name, member.handle)
            if self._guard.until(name) > time.monotonic():  # else it would be read at once again
                self._selector.unregister(key.fileobj)
                self._resting.append((name, member))
        now = time.monotonic()
        for name, member in self._timed:
            due = self._due(name, member)
            if due is not None and due <= now:
                self._guard.run(name, partial(member.step, now))

    def _register(self, name: str, member: Readable) -> None:
        self._selector.register(member.fileno(), selectors.EVENT_READ, (name, member))

    def _wake_readers(self) -> None:
        now = time.monotonic()
        resting, self._resting = self._resting, []
        for name, member in resting:
            if self._guard.until(name) <= now:
                self._register(name, member)
            else:
                self._resting.append((name, member))

    def _due(self, name: str, member: Timed) -> float | None:
        rests = self._guard.until(name)
        if rests > time.monotonic():
            return rests
        return self._guard.run(name, member.due)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        soonest: float | None = None
        for name, member in self._timed:
            due = self._due(name, member)
            if due is None:
                continue
            if due <= now:
                return 0.0
            soonest = due if soonest is None else min(soonest, due)
        for name, _ in self._resting:
            until = self._guard.until(name)
            soonest = until if soonest is None else min(soonest, until)
        return None if soonest is None else max(0.0, soonest - now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()


def _name(member: Readable | Timed) -> str:
    """What to call it in messages."""
    act: object = member
    if isinstance(member, Reader):
        act = member.handle
    elif isinstance(member, Timer):
        act = member.step
    act = getattr(act, "func", act)  # of a partial
    return getattr(act, "__qualname__", type(act).__name__)


class Signals:
    """SIGTERM and SIGINT end the wait, whenever they arrive: through a pair of sockets. A context
    manager, of the main thread."""

    def __init__(self) -> None:
        self.stopping = False
        self._reader, self._writer = socket.socketpair()
        self._undo = ExitStack()

    def fileno(self) -> int:
        """Readable when a signal has arrived."""
        return self._reader.fileno()

    def handle(self) -> None:
        """The signal's own handler has done the rest."""
        self._reader.recv(64)

    def __enter__(self) -> Self:
        for end in (self._reader, self._writer):
            end.setblocking(False)
            self._undo.callback(end.close)
        before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._undo.callback(signal.signal, number, signal.signal(number, self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
