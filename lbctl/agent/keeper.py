"""Who looks after the agent's threads: from its loop, whenever one ends or is overdue."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

from lbctl.errands import Errand
from lbctl.threads import Beat, Watched


class Kept(Protocol):
    """A `Watched` or an `Errand`."""

    name: str
    restarts: int

    def due(self) -> float | None: ...

    def check(self) -> None: ...

    @property
    def problem(self) -> str: ...


_Kept = TypeVar("_Kept", bound=Kept)


class Keeper:
    """Makes them, wakes the loop for them, and says how they are. `close` it last."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def work(self, name: str, work: Callable[[Beat], None]) -> Watched:
        """Something to be done as long as the agent lives; the caller starts and stops it."""
        return self.keep(Watched(name, work, wake=self.wake))

    def errand(self, name: str, seconds: float) -> Errand:
        """Something to be done now and then, in so many seconds each time."""
        return self.keep(Errand(name, seconds, wake=self.wake))

    def keep(self, kept: _Kept) -> _Kept:
        """Look after this one too."""
        self._kept.append(kept)
        return kept

    def wake(self) -> None:
        """From any thread: the loop has something to look at."""
        if not self._closed:
            os.eventfd_write(self._bell, 1)

    def fileno(self) -> int:
        """Readable when a thread has something to tell."""
        return self._bell

    def handle(self) -> None:
        """Look at all of them."""
        os.eventfd_read(self._bell)
        self._check()

    def due(self) -> float | None:
        """When one is overdue, or is to be started again."""
        found = (at for kept in self._kept if (at := kept.due()) is not None)
        return min(found, default=None)

    def step(self, now: float) -> None:
        """Look at all of them."""
        self._check()

    @property
    def restarts(self) -> int:
        """Threads that were replaced, and pieces of work that were given up, since the start."""
        return sum(kept.restarts for kept in self._kept)

    def problems(self) -> list[str]:
        """Sentences about threads that do not do their work for a minute."""
        return [kept.problem for kept in self._kept if kept.problem]

    def stop(self) -> None:
        """Tell all threads at once that they are to end: each is then waited for where it is, and
        all that time the others end too."""
        for kept in self._kept:
            if isinstance(kept, Watched):
                kept.stop()

    def close(self) -> None:
        """No thread may be running by now that matters."""
        self._closed = True
        os.close(self._bell)

    def _check(self) -> None:
        for kept in self._kept:
            kept.check()
