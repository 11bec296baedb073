"""When an Event is written, repeated, or not: as client-go's recorders do it, in spirit. Pure.

What is complained of holds for a while; an Event is written when it has held for some seconds,
and again as a series while it goes on, before the API server forgets it after an hour. What comes
and goes is one series. No object and no node can cause more than a bounded number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

SETTLE_SECONDS: Final = 5.0  # what is over before is not worth an Event
REPEAT_SECONDS: Final = 1800.0
FORGET_SECONDS: Final = 600.0  # what comes back sooner is the same
# Of all, and of those about one object: so many at once, then one each so many seconds.
_ALL: Final = (25, 6.0)
_EACH: Final = (10, 300.0)


class Regarding(msgspec.Struct, frozen=True, order=True):
    """The object that an Event is about; `namespace` is empty for a node."""

    kind: str
    namespace: str
    name: str
    uid: str = ""


class Complaint(NamedTuple):
    """What an Event is told by: of each there is one series."""

    regarding: Regarding
    reason: str


class Telling(NamedTuple):
    """What is to be sent: a new Event, or with `times` that it goes on, said so often by now."""

    complaint: Complaint
    note: str
    name: str
    times: int = 0


@dataclass(slots=True)
class _Known:
    note: str
    changed: float
    told: str | None = None  # the note that was sent last
    told_at: float = 0.0
    times: int = 1
    over: float | None = None  # since when it does not hold


@dataclass(slots=True)
class _Bucket:
    """Tokens, of which one comes back every so often."""

    most: int
    seconds: float
    tokens: float
    at: float

    def wait(self, now: float) -> float:
        """Seconds until there is one."""
        self.tokens = min(self.most, self.tokens + (now - self.at) / self.seconds)
        self.at = now
        return max(0.0, (1.0 - self.tokens) * self.seconds)


class Tellings:
    """Take what holds, then send what `next` says, and say that it was done."""

    def __init__(self) -> None:
        self._known: dict[Complaint, _Known] = {}
        self._all: _Bucket | None = None
        self._each: dict[Regarding, _Bucket] = {}

    def take(self, holding: Mapping[Complaint, str], now: float) -> None:
        """What is complained of, and in which words."""
        for complaint, note in holding.items():
            known = self._known.get(complaint)
            if known is None:
                self._known[complaint] = _Known(note, now)
                continue
            known.over = None
            if known.note != note:
                known.note, known.changed = note, now
        for complaint, known in self._known.items():
            if complaint not in holding and known.over is None:
                known.over = now
        self._forget(now)

    def next(self, now: float) -> Telling | None:
        """What is to be sent now."""
        return next(self._sendable(now), None)

    def due(self, now: float) -> float | None:
        """When `next` may have something, if nothing else happens; None: never."""
        times = [self._when(complaint, known, now) for complaint, known in self._known.items()]
        return min((at for at in times if at is not None), default=None)

    def sent(self, telling: Telling, now: float) -> None:
        """It was taken, or never will be: either way it is not sent again for now."""
        known = self._known[telling.complaint]
        known.times = telling.times or 1
        known.told, known.told_at = telling.note, now
        for bucket in self._buckets(telling.complaint, now):
            bucket.wait(now)
            bucket.tokens -= 1

    def _sendable(self, now: float) -> Iterator[Telling]:
        for complaint, known in self._known.items():
            at = self._when(complaint, known, now)
            if at is None or at > now:
                continue
            again = known.told == known.note
            times = known.times + 1 if again else 0
            yield Telling(complaint, known.note, _name(complaint, known.note), times)

    def _when(self, complaint: Complaint, known: _Known, now: float) -> float | None:
        if known.over is not None:
            return None
        if known.told == known.note:
            return known.told_at + REPEAT_SECONDS
        waits = (bucket.wait(now) for bucket in self._buckets(complaint, now))
        return max(known.changed + SETTLE_SECONDS, now + max(waits))

    def _buckets(self, complaint: Complaint, now: float) -> tuple[_Bucket, _Bucket]:
        if self._all is None:
            self._all = _Bucket(*_ALL, tokens=_ALL[0], at=now)
        each = self._each.get(complaint.regarding)
        if each is None:
            each = self._each[complaint.regarding] = _Bucket(*_EACH, tokens=_EACH[0], at=now)
        return self._all, each

    def _forget(self, now: float) -> None:
        for complaint, known in [*self._known.items()]:
            if known.over is not None and now - known.over >= FORGET_SECONDS:
                del self._known[complaint]
        if len(self._each) > 2 * len(self._known) + 100:
            kept = {complaint.regarding for complaint in self._known}
            self._each = {about: bucket for about, bucket in self._each.items() if about in kept}


def _name(complaint: Complaint, note: str) -> str:
    """The same whoever says it, and after a restart: what is there already is not written twice."""
    regarding = complaint.regarding
    text = "\n".join((regarding.kind, regarding.uid, complaint.reason, note))
    return f"{regarding.name[:200]}.{sha256(text.encode()).hexdigest()[:16]}"
