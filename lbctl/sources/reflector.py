"""Listing and watching one kind of object through a Kubernetes API, for as long as it takes.

A list that was read to its end replaces what is known; then events follow, from the version the
list had. A connection that ends is resumed from the last version seen. Only a version that the
server no longer has (410) means listing again. While nothing answers, everything known stays.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog

from lbctl.errors import LbError, ObjectError, SourceError
from lbctl.model.decode import Bookmark, Changed, Deleted, Kind, Malformed, Refused
from lbctl.model.records import EndpointSlice, Node, Service
from lbctl.sources.failures import FailureLog
from lbctl.sources.store import Object, Store

M = TypeVar("M", bound=Service | EndpointSlice | Node)

GONE = 410
UNAUTHORIZED = 401
_SKIPPED = "object skipped, the others are kept"
# Not this request's fault: the version it was about may still be good.
_BUSY = frozenset({UNAUTHORIZED, 429, 502, 503})


class ReflectorSettings(msgspec.Struct, frozen=True):
    """Times in seconds; tests make them short."""

    page_size: int = 500
    watch_seconds: float = 240.0  # after which the server ends a watch, jittered up to twice
    grace_seconds: float = 15.0  # silence beyond that: the connection is dead
    list_seconds: float = 60.0  # silence while listing
    backoff_first: float = 0.2
    backoff_limit: float = 30.0


class HttpError(LbError):
    """The API server answered with a status that is no success."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Response(Protocol):
    """The body of an answer, read piece by piece."""

    def read_all(self) -> bytes:
        """The rest of the body. Raises SourceError if the connection breaks."""

    def read_some(self) -> bytes:
        """At least one byte, empty at the end. Raises SourceError if the connection breaks."""

    def close(self) -> None:
        """Give the connection up, or back if the body was read to its end."""

    def interrupt(self) -> None:
        """End a read that another thread waits in."""


class Client(Protocol):
    """What a reflector needs of HTTP."""

    def get(self, path: str, query: Mapping[str, str], silence_seconds: float) -> Response:
        """Ask. Raises HttpError for a status that is no success, SourceError for no answer."""

    def renew(self) -> None:
        """Read credentials again: they were refused."""


@dataclass(frozen=True, slots=True)
class Resource(Generic[M]):
    """One kind, and where and with which selectors it is listed."""

    kind: Kind[M]
    record: type[Object]
    path: str
    selectors: dict[str, str]

    @property
    def plural(self) -> str:
        return self.path.rpartition("/")[2]


class Backoff:
    """How long to wait after a row of failures: doubling, bounded, with jitter so that a thousand
    nodes do not come back in step."""

    def __init__(self, first: float, limit: float) -> None:
        self._first = first
        self._limit = limit
        self._failures = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds; `at_least` is what the server asked for, bounded too."""
        delay = min(self._limit, self._first * 2.0**self._failures)
        self._failures = min(self._failures + 1, 32)
        return max(random.uniform(delay / 2, delay), min(at_least, self._limit))

    def reset(self) -> None:
        """It worked."""
        self._failures = 0


class Reflector(Generic[M]):
    """Keeps a store equal to what the API says of one kind. `run` is a thread's whole life."""

    def __init__(
        self, resource: Resource[M], client: Client, store: Store, settings: ReflectorSettings
    ) -> None:
        self._resource = resource
        self._client = client
        self._store = store
        self._settings = settings
        self._version: str | None = None  # None: list first
        self._stopping = threading.Event()
        self._open: Response | None = None
        self._backoff = Backoff(settings.backoff_first, settings.backoff_limit)
        self._failures = FailureLog(source="kubernetes", kind=resource.kind.name)
        self._log = structlog.get_logger().bind(source="kubernetes", kind=resource.kind.name)

    def stop(self) -> None:
        """End `run` soon, also if it waits for the server. From another thread."""
        self._stopping.set()
        response = self._open
        if response is not None:
            response.interrupt()

    def run(self) -> None:
        """List and watch until `stop`."""
        while not self._stopping.is_set():
            try:
                if self._version is None:
                    self._version = self._list()
                self._watch(self._version)
            except LbError as error:
                if self._stopping.is_set():
                    return
                self._failed(error)

    def _failed(self, error: LbError) -> None:
        """Decide what to do about a failure, say so, and wait."""
        retry_after = 0.0
        if isinstance(error, HttpError):
            retry_after = error.retry_after
            if error.status == UNAUTHORIZED:
                self._renew()
            if error.status not in _BUSY:
                self._version = None
        message = f"{self._resource.plural}: {error.message}"
        if isinstance(error, HttpError) and error.status == GONE:
            self._log.info("listing again, the watched version is too old")
        else:
            self._store.disconnected(self._resource.kind.name, message)
            self._failures.failed(message)
        self._stopping.wait(self._backoff.next(retry_after))

    def _renew(self) -> None:
        try:
            self._client.renew()
        except LbError as error:
            self._log.warning("credentials cannot be read again", error=error.message)

    # Listing.

    def _list(self) -> str:
        """Read all pages, then replace what is known. Returns the version of the list."""
        try:
            return self._list_pages(self._settings.page_size)
        except HttpError as error:
            if error.status != GONE:
                raise
            # The pages' snapshot expired before all were read: take everything in one.
            return self._list_pages(0)

    def _list_pages(self, limit: int) -> str:
        objects: list[M] = []
        malformed: list[Malformed] = []
        query = dict(self._resource.selectors)
        if limit:
            query["limit"] = str(limit)
        while True:
            data = self._read_all(query)
            page = self._resource.kind.decode_list(data)
            objects += page.objects
            malformed += page.malformed
            if not page.next:
                break
            query["continue"] = page.next
        self._replace(objects, malformed)
        self._backoff.reset()
        return page.resource_version

    def _read_all(self, query: Mapping[str, str]) -> bytes:
        self._open = self._client.get(
            self._resource.path, query, silence_seconds=self._settings.list_seconds
        )
        try:
            if self._stopping.is_set():
                raise SourceError("stopped")
            return self._open.read_all()
        finally:
            self._open.close()
            self._open = None

    def _replace(self, objects: list[M], malformed: list[Malformed]) -> None:
        self._store.replace(self._resource.record, objects, {m.key: m.message for m in malformed})
        for item in malformed:
            self._log.error(_SKIPPED, error=item.message)
        self._log.info("listed", objects=len(objects), malformed=len(malformed))

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
        self._open = self._client.get(self._resource.path, query, silence_seconds=silence)
        try:
            self._store.connected(self._resource.kind.name)
            self._failures.worked()
            for line in self._lines(self._open):
                self._event(line)
                self._backoff.reset()
        finally:
            self._open.close()
            self._open = None
        if time.monotonic() - started < 1.0 and not self._stopping.is_set():
            # A server that ends every watch at once must not be asked in a tight loop.
            self._stopping.wait(self._backoff.next())
        else:
            self._backoff.reset()

    def _lines(self, response: Response) -> Iterator[bytes]:
        """Complete lines; one that the end of the connection cut short is left out."""
        parts: list[bytes] = []
        while not self._stopping.is_set():
            data = response.read_some()
            if not data:
                return
            head, newline, rest = data.partition(b"\n")
            parts.append(head)
            if not newline:
                continue
            yield b"".join(parts)
            *lines, last = rest.split(b"\n")
            yield from lines
            parts = [last] if last else []

    def _event(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = self._resource.kind.decode_event(line)
        except ObjectError as error:
            # Nothing tells which object this was about. A new list will.
            raise HttpError(GONE, error.message) from error
        match event:
            case Changed(object=value, resource_version=version):
                self._store.put(value)
            case Deleted(key=key, resource_version=version):
                self._store.remove(self._resource.record, key)
            case Bookmark(resource_version=version):
                pass
            case Malformed(resource_version=version):
                self._store.set_problem(self._resource.record, event.key, event.message)
                self._log.error(_SKIPPED, error=event.message)
            case Refused():
                raise HttpError(event.code or GONE, f"the watch was ended: {event.message}")
        if version:
            self._version = version
