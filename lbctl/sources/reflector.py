"""Listing and watching one kind of object through a Kubernetes API, for as long as it takes.

A list that was read to its end replaces what is known; then events follow, from the version the
list had. A connection that ends is resumed from the last version seen. Listing again is for what
cannot be resumed: a version the server no longer has (410), or does not have yet (it was restored
from a backup), and an answer that makes no sense. While nothing answers, everything known stays.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import structlog

from lbctl.errors import LbError, ObjectError, SourceError
from lbctl.instruments import Instruments
from lbctl.model.decode import Bookmark, Changed, Deleted, Malformed, Refused
from lbctl.model.records import EndpointSlice, Node, Service
from lbctl.sources.asking import Asker, Client, HttpError, ReflectorSettings, Resource, Response
from lbctl.sources.failures import FailureLog
from lbctl.sources.lists import GONE, Found, Lister
from lbctl.sources.pace import Pace
from lbctl.sources.store import Store
from lbctl.threads import Beat

M = TypeVar("M", bound=Service | EndpointSlice | Node)

MAX_LINE: Final = 16 << 20  # bytes of one event; etcd takes objects of 1.5 MiB
# A server ends watches after the time it was told. One that ends them sooner has a fault.
_EARLY_SECONDS = 10.0
# ... and it sends a bookmark every minute. A watch of this length that never said anything may be
# one from a version that a restored server has not reached yet.
_SILENT_SECONDS = 150.0
_UNAUTHORIZED = 401
# Not this request's fault: the version it was about may still be good.
_BUSY = frozenset({_UNAUTHORIZED, 429, 502, 503})
_HICCUPS = 2  # so many lists again in a row are nothing to report
_SAID = 10  # objects of one list that are named in the log
_SKIPPED = "object skipped, the others are kept"
_PARTLY = "part of an object skipped, the rest of it is used"


class Reflector(Generic[M]):
    """Keeps a store equal to what the API says of one kind. `run` is a thread's whole life."""

    def __init__(
        self,
        resource: Resource[M],
        client: Client,
        store: Store,
        settings: ReflectorSettings,
        pace: Pace,
        beat: Beat,
        expected: int = 0,
        instruments: Instruments | None = None,
    ) -> None:
        """`expected` objects are served already by what an earlier agent left."""
        counts, kind = instruments or Instruments(), resource.kind.name
        self._lists = counts.lists.labels(kind)
        self._watches = counts.watches.labels(kind)
        self._faults = counts.api_faults.labels(kind)
        self._resource = resource
        self._client = client
        self._store = store
        self._settings = settings
        self._pace = pace
        self._beat = beat
        self._asker = Asker(resource.path, client, pace, beat)
        self._lister = Lister(resource, store, settings, self._asker, pace, beat, expected)
        self._version: str | None = None  # None: list first
        self._failures = FailureLog(source="kubernetes", kind=resource.kind.name)
        self._log = structlog.get_logger().bind(source="kubernetes", kind=resource.kind.name)

    def run(self) -> None:
        """List and watch until the beat says stop."""
        stopping = self._beat.stopping
        while not stopping.is_set():
            try:
                if self._version is None:
                    self._lists.inc()
                    found = self._lister.list()
                    if stopping.is_set():
                        return
                    self._replace(found)
                    self._version = found.version
                self._watch(self._version)
            except LbError as error:
                if stopping.is_set():
                    return
                self._failed(error)

    def _failed(self, error: LbError) -> None:
        """Decide what to do about a failure, say so, and wait."""
        self._faults.inc()
        retry_after, gone = 0.0, False
        if isinstance(error, HttpError):
            retry_after = error.retry_after
            gone = error.status == GONE
            if error.status == _UNAUTHORIZED:
                self._client.renew()
            if error.status not in _BUSY:
                self._version = None
        wait = self._pace.failed(retry_after)
        message = f"{self._resource.plural}: {error.message}"
        if gone and self._pace.faults <= _HICCUPS:
            self._log.info("listing again", reason=error.message)
        else:
            self._store.disconnected(self._resource.kind.name, message)
            self._failures.failed(message)
        self._beat.pause(wait)

    def _replace(self, found: Found[M]) -> None:
        self._store.replace(self._resource.record, found.objects, found.malformed, found.remarks)
        for message in list(found.malformed.values())[:_SAID]:
            self._log.warning(_SKIPPED, error=message)
        for message in list(found.remarks.values())[:_SAID]:
            self._log.warning(_PARTLY, error=message)
        self._log.info(
            "listed",
            objects=len(found.objects),
            malformed=len(found.malformed),
            partly=len(found.remarks),
        )

    # Watching.

    def _watch(self, version: str) -> None:
        """Follow events until the connection ends, in order or not; `_version` moves along."""
        seconds = self._settings.watch_seconds * random.uniform(1.0, 2.0)
        query = {
            **self._resource.selectors,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(seconds))),
            "resourceVersion": version,
        }
        started = time.monotonic()
        silence = max(1.0, seconds) + self._settings.grace_seconds
        heard = False
        self._watches.inc()
        with self._asker.ask(query, silence) as response:
            self._store.connected(self._resource.kind.name)
            self._failures.worked()
            for line in self._lines(response, silence):
                if line.strip():
                    heard = True
                    self._event(line)
        lasted = time.monotonic() - started
        if self._beat.stopping.is_set():
            return
        if lasted < min(_EARLY_SECONDS, seconds / 2):
            raise SourceError(f"the watch was ended after {lasted:.1f} of {seconds:.0f} seconds")
        if not heard and lasted >= _SILENT_SECONDS:
            self._log.info("listing again, the watch was silent")
            self._version = None

    def _lines(self, response: Response, seconds: float) -> Iterator[bytes]:
        """Complete lines; one that the end of the connection cut short is left out."""
        until = time.monotonic() + seconds
        parts: list[bytes] = []
        size = 0
        while not self._beat.stopping.is_set() and time.monotonic() < until:
            self._asker.still_reading(seconds)
            data = response.read_some()
            if not data:
                return
            head, newline, rest = data.partition(b"\n")
            parts.append(head)
            size += len(head)
            if size > MAX_LINE:
                raise HttpError(GONE, f"an event has more than {MAX_LINE:,} bytes")
            if not newline:
                continue
            yield b"".join(parts)
            *lines, last = rest.split(b"\n")
            yield from lines
            parts, size = [last], len(last)

    def _event(self, line: bytes) -> None:
        try:
            event = self._resource.kind.decode_event(line)
        except ObjectError as error:
            # Nothing tells which object this was about. A new list will.
            raise HttpError(GONE, error.message) from error
        if isinstance(event, Refused):
            raise HttpError(event.code or GONE, f"the watch was ended: {event.message}")
        self._check_version(event.resource_version)
        match event:
            case Changed(object=value):
                if self._store.put(value, event.remark):
                    self._log.warning(_PARTLY, error=event.remark)
            case Deleted(key=key):
                self._store.remove(self._resource.record, key)
            case Malformed(key=key):
                if self._store.set_problem(self._resource.record, key, event.message):
                    self._log.error(_SKIPPED, error=event.message)
            case Bookmark():
                pass
        self._version = event.resource_version

    def _check_version(self, version: str) -> None:
        """Events have rising versions (KEP-5504: numbers that can be compared). A lower one is from
        an older state of the cluster, of which we know things that never were."""
        if not version:
            raise HttpError(GONE, "an event has no resourceVersion")
        before = self._version or ""
        if _is_number(version) and _is_number(before) and int(version) < int(before):
            raise HttpError(
                GONE,
                f"resourceVersion went back from {before} to {version}: "
                "the API server has an older state than it had",
            )


def _is_number(version: str) -> bool:
    return version.isascii() and version.isdigit() and len(version) <= 20
