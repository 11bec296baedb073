"""Pieces of work that are handed to a thread, one at a time: one that hangs is left to itself.

What a thread is to do for as long as the process lives is in lbctl/threads.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from lbctl.threads import UNREADY_SECONDS, Clock

_ABANDONED = 8  # that hang, before no more are begun


class Errand:
    """Work that somebody has now and then. `check` is called by the one who hands it out, often: at
    `due()` and when `wake` was called, which the thread does when it is done."""

    def __init__(
        self,
        name: str,
        seconds: float,
        *,
        wake: Callable[[], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """One that takes longer than `seconds` is stuck."""
        self.name = name
        self.restarts = 0  # pieces of work that were left to themselves or ended by an error
        self._seconds = seconds
        self._wake = wake
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._since = 0.0
        self._abandoned: list[threading.Thread] = []
        self._failed = ""  # of the piece under way, told by its thread
        self._ill_since: float | None = None
        self._why = ""
        self._log = structlog.get_logger().bind(thread=name)

    @property
    def busy(self) -> bool:
        """Whether no more can be handed out now."""
        self.check()
        return self._thread is not None or len(self._abandoned) >= _ABANDONED

    def send(self, work: Callable[[], None]) -> bool:
        """Have it done; False, and it is not, while `busy`."""
        if self.busy:
            return False
        self._failed = ""
        self._since = self._clock()
        thread = threading.Thread(target=self._run, args=(work,), name=self.name, daemon=True)
        self._thread = thread
        thread.start()
        return True

    def due(self) -> float | None:
        """When `check` has something to do at the latest, by the clock; None: not by itself."""
        return None if self._thread is None else self._since + self._seconds

    def check(self) -> None:
        """See how the work is doing."""
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        if self._thread is None:
            return
        if not self._thread.is_alive():
            self._thread = None
            if self._failed:
                self._is_ill(self._failed)
            else:
                self._ill_since, self._why = None, ""
        elif self._clock() >= self._since + self._seconds:
            self._abandoned.append(self._thread)
            self._thread = None
            self._is_ill(f"it is stuck: not done in {self._seconds:.0f} s")

    @property
    def problem(self) -> str:
        """Why the work is not done, once that has lasted longer than `UNREADY_SECONDS`."""
        if self._ill_since is None or self._clock() - self._ill_since < UNREADY_SECONDS:
            return ""
        return f"thread {self.name}: {self._why}; begun anew {self.restarts} times"

    def join(self, timeout: float) -> bool:
        """Wait for what is under way; whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _is_ill(self, why: str) -> None:
        self.restarts += 1
        if self._ill_since is None:
            self._ill_since = self._clock()
        if why != self._why:
            self._log.error("work of a thread is given up", why=why)
        self._why = why

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - whatever it was: it must not end the work
            if threading.current_thread() is self._thread:
                self._failed = f"{type(error).__name__}: {error}"[:200]
            self._log.exception("work of a thread ended by an error")
        finally:
            if self._wake is not None:
                self._wake()
