"""Lines of several streams as one, by their times, as far as a small bound allows.

A line waits until every other stream has told something as late, since each stream is in order by
itself; and no longer than the bound, since a node on which nothing happens tells nothing.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Line(NamedTuple):
    """Sorted by time, then as they came."""

    moment: float
    number: int
    source: str
    text: str
    until: float  # it waits no longer


class Interleaver:
    """Told what comes, and asked what goes on; `until` and `now` are of one clock."""

    def __init__(self, sources: Iterable[str]) -> None:
        self._latest = dict.fromkeys(sources, float("-inf"))
        self._waiting: list[Line] = []
        self._number = 0

    def add(self, source: str, moment: float, text: str, until: float) -> None:
        """A line of a stream, which waits no longer than `until`. One that is earlier than the
        stream's last stays behind that."""
        moment = max(moment, self._latest[source])
        self._latest[source] = moment
        self._number += 1
        heapq.heappush(self._waiting, Line(moment, self._number, source, text, until))

    def gone(self, source: str) -> None:
        """Nothing more comes from it."""
        self._latest.pop(source, None)

    def due(self) -> float | None:
        """When the next line goes on, whatever comes; None if there is none."""
        return min((line.until for line in self._waiting), default=None)

    def ready(self, now: float) -> Iterator[Line]:
        """Lines that need not wait any more, in order."""
        told = min(self._latest.values(), default=float("inf"))
        overdue = max(
            (line.moment for line in self._waiting if line.until <= now), default=float("-inf")
        )
        # What is before one that has waited long enough goes before it.
        while self._waiting and self._waiting[0].moment <= max(told, overdue):
            yield heapq.heappop(self._waiting)
