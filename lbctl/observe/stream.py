"""What somebody who asked gets to see: the past that is known, then events as they happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from lbctl.datapath import consts
from lbctl.datapath.tables import Records
from lbctl.errors import LbError
from lbctl.inspect import names
from lbctl.inspect.opened import open_instance
from lbctl.model.names import PortName
from lbctl.observe import past
from lbctl.observe.eventfilter import EventFilter
from lbctl.observe.events import EventRow, Names, Reader
from lbctl.observe.listener import Listener
from lbctl.observe.places import Places
from lbctl.observe.wire import Frame, Told, Wanted

_LOOK_SECONDS: Final = 0.5
_AGAIN_SECONDS: Final = 1.0
_REST_SECONDS: Final = 10.0  # the agent has for what is left


class Lost(msgspec.Struct, frozen=True):
    """So many events were lost by now."""

    count: int


class Note(msgspec.Struct, frozen=True):
    """Something to be said beside the events."""

    text: str


class Asked(msgspec.Struct, frozen=True):
    """Which events. `last` and `since` (seconds ago) are about the past; `live` goes on, until
    `seconds` are over or `Stream.end` is called."""

    wanted: EventFilter
    last: int = 0
    since: float = 0.0
    live: bool = True
    seconds: float = 0.0


class Stream:
    """One listener's view. `lost` is how many events it did not get."""

    def __init__(self, pin_dir: Path, asked: Asked, kubeconfig: Path | None = None) -> None:
        """By the rights of `kubeconfig` all pods' names are asked for. Raises NotFound if there is
        no instance, LbError."""
        self._pin_dir = pin_dir
        self._asked = asked
        with open_instance(pin_dir) as instance:
            self._enums = instance.enums
        self._places = Places.of_agent(pin_dir, kubeconfig)
        self._reader = Reader(self._enums, Names(self._names), self._places)
        self._ending = False
        self._earlier = 0  # lost while agents listened that have ended
        self._shown: set[bytes] = set()
        self.lost = 0

    def end(self) -> None:
        """What was told until now is still to come, and no more. May be called by a signal."""
        self._ending = True

    def events(self) -> Iterator[EventRow | Lost | Note]:
        """As they come. Raises NotFound if there is no agent, LbError."""
        began = time.monotonic()
        until = began + self._asked.seconds if self._asked.seconds else float("inf")
        self._places.refresh()
        if self._places.problem:
            yield Note(self._places.problem)
        wanted = self._wanted(began)
        with Listener(self._pin_dir, wanted) as first:
            if wanted != Wanted():
                yield from self._before(first, wanted)
            yield from self._listened(first, until)
        while self._asked.live and not self._ending:
            self._earlier = self.lost
            yield Note("the agent has ended: what happens until another runs is not told")
            listener = self._next_agent(until)
            if listener is None:
                return
            with listener:
                yield Note("an agent runs again")
                yield from self._listened(listener, until)

    def _names(self) -> dict[int, PortName]:
        with open_instance(self._pin_dir) as instance:
            return names.all_names(instance.names)

    def _wanted(self, now: float) -> Wanted:
        since = max(1, int((now - self._asked.since) * 1e9)) if self._asked.since else 0
        return Wanted(self._asked.last, since)

    def _before(self, listener: Listener, wanted: Wanted) -> Iterator[EventRow | Note]:
        """Flows of the time when nobody listened, then what was told to others."""
        listening = listener.listening
        with open_instance(self._pin_dir) as instance:
            known = past.opened(instance.flow_tables, wanted.since, listening)
        told = np.empty(0, known.dtype)
        for frame in self._whole(listener):
            told = frame.records
        # A flow's beginning is known to a beat alone: one that began right then may be told too.
        self._shown = set(past.identities(known[known["time"] >= listening - past.BEAT]))
        told = self._unshown(told)
        if self._asked.since and wanted.since < listening:
            moment = self._reader.moment(listening)
            yield Note(f"nobody listened before {moment}: of that, flows that are still open")
        yield from self._last([*self._rows(known), *self._rows(told)])

    def _whole(self, listener: Listener) -> Iterator[Frame]:
        """The frame of the past."""
        until = time.monotonic() + _REST_SECONDS
        while time.monotonic() < until and not listener.ended:
            for frame in listener.frames(_LOOK_SECONDS):
                yield frame
                return

    def _last(self, rows: list[EventRow]) -> list[EventRow]:
        return rows[-self._asked.last :] if self._asked.last else rows

    def _listened(self, listener: Listener, until: float) -> Iterator[EventRow | Lost | Note]:
        finishing = None
        if not self._asked.live:
            return
        while not listener.ended:
            now = time.monotonic()
            if finishing is None and (self._ending or now >= until):
                listener.finish()
                self._ending = True
                finishing = now + _REST_SECONDS
            if finishing is not None and now >= finishing:
                yield Note("the agent did not tell the rest")
                return
            for frame in listener.frames(min(_LOOK_SECONDS, max(0.0, until - now))):
                yield from self._told(frame)
            self._places.refresh()

    def _told(self, frame: Frame) -> Iterator[EventRow | Lost | Note]:
        if frame.told is not Told.PAST:
            yield from self._rows(self._unshown(frame.records))
        lost = self._earlier + frame.lost
        if lost != self.lost:
            self.lost = lost
            yield Lost(lost)

    def _unshown(self, records: Records) -> Records:
        """Without new flows that were shown as open ones; each of them is told once at most."""
        if not self._shown:
            return records
        names = past.identities(records)
        again = [name in self._shown for name in names]
        self._shown -= {name for name, found in zip(names, again, strict=True) if found}
        kept: Records = records[~np.array(again, bool) | (records["what"] != consts.EVENT_OPENED)]
        return kept

    def _rows(self, records: Records) -> Iterator[EventRow]:
        wanted = self._asked.wanted
        rows = self._reader.rows(wanted.chosen(records, self._enums))
        return (row for row in rows if wanted.matches(row))

    def _next_agent(self, until: float) -> Listener | None:
        """Once there is one; None if that is not to be waited for any longer."""
        while not self._ending and time.monotonic() < until:
            try:
                return Listener(self._pin_dir, Wanted())
            except LbError:  # it is about to listen, or to end
                time.sleep(_AGAIN_SECONDS)
        return None
