"""The last events for the page: listened for only while somebody looks."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import LbError
from lbctl.observe.eventfilter import EventFilter
from lbctl.observe.events import EventRow
from lbctl.observe.stream import Asked, Lost, Note, Stream

KEPT: Final = 200
_AWAY_SECONDS: Final = 15.0  # a page that has not asked for so long is closed
_LEAVES_SECONDS: Final = 3.0


class Recent(msgspec.Struct, frozen=True):
    """Events after the number that was asked about; `next` is the one to ask about then."""

    next: int
    events: tuple[EventRow, ...]
    lost: int
    problem: str


class Events:
    """Asked by any thread."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._lock = threading.Lock()
        self._events: deque[EventRow] = deque(maxlen=KEPT)
        self._number = 0
        self._lost = 0
        self._problem = ""
        self._asked = 0.0
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None

    def after(self, number: int) -> Recent:
        """What came since then, as far as it is kept."""
        with self._lock:
            self._asked = time.monotonic()
            if self._thread is None:
                self._begin()
            missed = max(0, self._number - number)
            events = list(self._events)[-missed:] if missed else []
            return Recent(self._number, tuple(events), self._lost, self._problem)

    def close(self) -> None:
        """Listen no more."""
        with self._lock:
            stream, thread = self._stream, self._thread
        if stream is not None:
            stream.end()
        if thread is not None:
            thread.join(_LEAVES_SECONDS)

    def _begin(self) -> None:
        self._problem = ""
        try:
            self._stream = Stream(self._pin_dir, Asked(EventFilter()))
        except LbError as error:
            self._problem = error.message
            return
        self._thread = threading.Thread(
            target=self._listen, args=(self._stream,), name="events", daemon=True
        )
        self._thread.start()

    def _listen(self, stream: Stream) -> None:
        watch = threading.Timer(_AWAY_SECONDS, self._look_away, (stream,))
        watch.daemon = True
        watch.start()
        try:
            for event in stream.events():
                with self._lock:
                    self._take(event)
        except LbError as error:
            with self._lock:
                self._problem = error.message
        finally:
            watch.cancel()
            with self._lock:
                self._thread = None

    def _take(self, event: EventRow | Lost | Note) -> None:
        if isinstance(event, Lost):
            self._lost = event.count
        elif isinstance(event, Note):
            self._problem = event.text
        else:
            self._events.append(event)
            self._number += 1

    def _look_away(self, stream: Stream) -> None:
        """End the stream if nobody has asked for a while; else look again."""
        with self._lock:
            idle = time.monotonic() - self._asked
            running = self._stream is stream and self._thread is not None
        if idle >= _AWAY_SECONDS or not running:
            stream.end()
            return
        watch = threading.Timer(_AWAY_SECONDS - idle + 0.1, self._look_away, (stream,))
        watch.daemon = True
        watch.start()
