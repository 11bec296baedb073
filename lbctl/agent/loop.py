"""The agent's loop: waits until something can be read or is due, and lets it act."""

import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import Protocol, Self, runtime_checkable


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


class Loop:
    """Turns; every turn waits once. Close it, or use it as a context manager."""

    def __init__(self, members: Sequence[Readable | Timed]) -> None:
        """Those due at the same time act in the order of `members`, which may be both kinds."""
        self._timed = [member for member in members if isinstance(member, Timed)]
        self._selector = selectors.DefaultSelector()
        for member in members:
            if isinstance(member, Readable):
                self._selector.register(member.fileno(), selectors.EVENT_READ, member.handle)

    def turn(self) -> None:
        """Wait until something is to be done, and do that."""
        for key, _ in self._selector.select(self._timeout()):
            handle: Callable[[], object] = key.data
            handle()
        now = time.monotonic()
        for member in self._timed:
            due = member.due()
            if due is not None and due <= now:
                member.step(now)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        soonest: float | None = None
        for member in self._timed:
            due = member.due()
            if due is None:
                continue
            if due <= now:
                return 0.0
            soonest = due if soonest is None else min(soonest, due)
        return None if soonest is None else soonest - now

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()


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
