"""How often one kind is asked for: the API server of a cluster must survive all its nodes.

Every request counts, of lists, their pages and watches; a fault of any of them makes the next wait
longer. Only time without faults makes it short again, so that a server that answers every list and
then refuses every watch is asked as rarely as one that answers nothing.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

WINDOW_SECONDS: Final = 60.0
RETRY_AFTER_LIMIT: Final = 120.0  # no answer may keep us away for longer than this
_SINGLE = 2  # faults in a row that may still be a hiccup: the rate is not looked at


class Pace:
    """Waits between the requests of one kind. Used by one thread at a time."""

    def __init__(
        self,
        first: float,
        limit: float,
        *,
        per_minute: int = 25,
        calm_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Waits double from `first` to `limit`. While faults go on, there are no more than
        `per_minute` requests; after `calm_seconds` without one, all is forgotten."""
        self._first = first
        self._limit = limit
        self._per_minute = per_minute
        self._calm = calm_seconds
        self._clock = clock
        self._uniform = uniform
        self._asked: deque[float] = deque(maxlen=4 * per_minute)
        self._attempt = 0  # requests since the last fault
        self._resumed = float("-inf")  # when the last wait was over
        self.faults = 0  # in a row

    def hold(self) -> float:
        """How long the next request has to wait, in seconds. Only while faults go on: a list may
        have more pages than the last attempt, for which `failed` made room."""
        now = self._clock()
        if self.faults <= _SINGLE or now - self._resumed >= self._calm:
            return 0.0
        wait = self._until_there_is_room(now, 1)
        if wait:
            self._resumed = now + wait  # waiting is no time without faults
        return wait

    def asked(self) -> None:
        """A request is sent."""
        self._asked.append(self._clock())
        self._attempt += 1

    def failed(self, at_least: float = 0.0) -> float:
        """A fault: how long to wait, in seconds. `at_least` is what the server asked for."""
        now = self._clock()
        if now - self._resumed >= self._calm:
            self.faults = 0
        delay = min(self._limit, self._first * 2.0**self.faults)
        # A thousand nodes must not come back in step.
        delay = self._uniform(0.75 * delay, delay)
        self.faults = min(self.faults + 1, 32)
        if self.faults > _SINGLE:
            # As much as the last attempt took, so that the next is not held in its midst.
            delay = max(delay, self._until_there_is_room(now, max(1, self._attempt)))
        delay = max(delay, min(at_least, RETRY_AFTER_LIMIT))
        self._attempt = 0
        self._resumed = now + delay
        return delay

    def _until_there_is_room(self, now: float, requests: int) -> float:
        """Until so many requests more fit into a minute."""
        recent = [at for at in self._asked if now - at < WINDOW_SECONDS]
        over = len(recent) + min(requests, self._per_minute) - self._per_minute
        return recent[over - 1] + WINDOW_SECONDS - now if over > 0 else 0.0
