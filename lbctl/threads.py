"""Threads that are looked after: one that ended or is stuck is replaced, counted and reported.

Python cannot end a thread from outside. A stuck one is told to stop, left to itself, and another
takes its work, with state of its own; what it still brings is not taken (`Beat.stopping`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

# How long a thread may be dead, stuck, or dying again and again before the agent is unready.
UNREADY_SECONDS: Final = 60.0
CALM_SECONDS: Final = 60.0  # a thread that ran so long is well
_FIRST_SECONDS = 1.0  # before a thread is replaced; doubled while its successors end as well
_LAST_SECONDS = 30.0
_ABANDONED = 8  # stuck threads that may be left to themselves before no more are started

Clock = Callable[[], float]


class Beat:
    """Between a thread and who looks after it: it says when it will be heard of again, and is told
    to stop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = float("inf")
        self.stopping = threading.Event()
        self.interrupt: Callable[[], None] = _nothing  # ends what the thread waits for, if it can

    def within(self, seconds: float) -> None:
        """From the thread: I do this for so long at most, or I am stuck."""
        self._due = self._clock() + seconds

    def pause(self, seconds: float) -> None:
        """From the thread: wait, or until it has to stop."""
        self.within(seconds + UNREADY_SECONDS)
        self.stopping.wait(seconds)

    def stop(self) -> None:
        """To the thread."""
        self.stopping.set()
        self.interrupt()

    @property
    def due(self) -> float:
        """When it is stuck, by the clock."""
        return self._due


class Watched:
    """One piece of work that a thread is to do as long as the process lives.

    `work` gets a new `Beat` each time it starts, and returns only when that says so. `check` is
    called by one other thread, often: at `due()`, and when `wake` was called, which the thread does
    (from itself) when it ends.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Beat], None],
        *,
        wake: Callable[[], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._work = work
        self._wake = wake or _nothing
        self._clock = clock
        self._log = structlog.get_logger().bind(thread=name)
        self._beat = Beat(clock)
        self._thread: threading.Thread | None = None
        self._abandoned: list[threading.Thread] = []
        self._started = 0.0
        self._again_at: float | None = None  # when the next one starts; None: one is running
        self._row = 0  # how many ended one soon after the other
        self._ill_since: float | None = None
        self._why = ""

    def start(self) -> None:
        """Begin the work."""
        self._beat = Beat(self._clock)
        self._started = self._clock()
        self._again_at = None
        self._thread = threading.Thread(
            target=self._run, args=(self._beat,), name=self.name, daemon=True
        )
        self._thread.start()

    def begin_again(self) -> None:
        """Let another thread do the work from its beginning; the one before is told to stop. That
        is not counted: nothing is wrong with it."""
        self._abandoned = [t for t in self._abandoned if t.is_alive()]
        stopped = self._thread is None or self._beat.stopping.is_set()
        if stopped or self._again_at is not None or len(self._abandoned) >= _ABANDONED:
            return
        self._beat.stop()
        if self._thread is not None:
            self._abandoned.append(self._thread)
        self.start()

    def stop(self) -> None:
        """Tell the thread, and that it is not to be replaced. `join` afterwards."""
        self._again_at = None
        self._beat.stop()

    def join(self, timeout: float) -> bool:
        """Wait for the thread, and for those left to themselves; whether all have ended."""
        until = time.monotonic() + timeout
        threads = [t for t in (self._thread, *self._abandoned) if t is not None]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def alive(self) -> bool:
        """Whether a thread of this work still runs."""
        return self._thread is not None and not self.join(0)

    def due(self) -> float | None:
        """When `check` has something to do at the latest, by the clock; None: not by itself."""
        if self._beat.stopping.is_set() and self._again_at is None:
            return None
        at = self._beat.due if self._again_at is None else self._again_at
        return None if at == float("inf") else at

    def check(self) -> None:
        """Replace the thread if it ended or is stuck."""
        now = self._clock()
        if self._again_at is not None:
            if now >= self._again_at:
                self._replace(now)
        elif self._thread is not None and not self._beat.stopping.is_set():
            if not self._thread.is_alive():
                self._is_ill(now, self._why or "it ended")
            elif now >= self._beat.due:
                self._beat.stop()
                self._abandoned.append(self._thread)
                self._is_ill(now, "it is stuck")
            elif now - self._started >= CALM_SECONDS:
                self._row, self._ill_since, self._why = 0, None, ""

    @property
    def problem(self) -> str:
        """Why the work is not done, once that has lasted longer than `UNREADY_SECONDS`."""
        if self._ill_since is None or self._clock() - self._ill_since < UNREADY_SECONDS:
            return ""
        if self._again_at is None and self._row < 2:  # it ended once, and its successor works
            return ""
        return f"thread {self.name}: {self._why}; started again {self.restarts} times"

    def _is_ill(self, now: float, why: str) -> None:
        if self._ill_since is None:
            self._ill_since = now
        self._why = why
        wait = min(_LAST_SECONDS, _FIRST_SECONDS * 2.0**self._row)
        self._row = min(self._row + 1, 16)
        self._again_at = now + wait
        self._log.error("thread is replaced", why=why, restarts=self.restarts, seconds=wait)

    def _replace(self, now: float) -> None:
        self._abandoned = [t for t in self._abandoned if t.is_alive()]
        if len(self._abandoned) >= _ABANDONED:
            self._again_at = now + _LAST_SECONDS
            return
        self.restarts += 1
        self.start()

    def _run(self, beat: Beat) -> None:
        try:
            self._work(beat)
        except BaseException as error:  # noqa: BLE001 - whatever it was: it must not end the work
            if not beat.stopping.is_set():
                self._why = f"{type(error).__name__}: {error}"[:200]
                self._log.exception("thread ended by an error")
        finally:
            if not beat.stopping.is_set():
                self._wake()


def _nothing() -> None:
    """For what need not be done."""
