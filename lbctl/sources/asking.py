"""Asking an API server for one kind: what, how patiently, and one request at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import msgspec

from lbctl.errors import LbError, SourceError
from lbctl.model.decode import Kind
from lbctl.model.records import EndpointSlice, Node, Service
from lbctl.sources.pace import Pace
from lbctl.sources.store import Object
from lbctl.threads import Beat

M = TypeVar("M", bound=Service | EndpointSlice | Node)

# To look a name up, connect, and do the work that follows an answer.
_BESIDE_SECONDS: Final = 60.0


class ReflectorSettings(msgspec.Struct, frozen=True):
    """Times in seconds; tests make them short."""

    page_size: int = 500
    watch_seconds: float = 240.0  # after which the server ends a watch, jittered up to twice
    grace_seconds: float = 15.0  # silence beyond that: the connection is dead
    list_seconds: float = 60.0  # silence while listing
    backoff_first: float = 0.5
    backoff_limit: float = 30.0
    confirm_seconds: float = 1.0  # between a list that is hard to believe and the one that confirms
    requests_per_minute: int = 25  # while faults go on


class HttpError(LbError):
    """The API server answered with a status that is no success."""

    def __init__(self, status: int, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Response(Protocol):
    """The body of an answer, read piece by piece."""

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


class Asker:
    """Sends the requests of one kind, counts them, and can be interrupted by another thread."""

    def __init__(self, path: str, client: Client, pace: Pace, beat: Beat) -> None:
        self._path = path
        self._client = client
        self._pace = pace
        self._beat = beat
        self._open: Response | None = None
        beat.interrupt = self._interrupt

    @contextmanager
    def ask(self, query: Mapping[str, str], silence_seconds: float) -> Iterator[Response]:
        """The answer, closed afterwards. Raises HttpError, SourceError."""
        self._beat.pause(self._pace.hold())
        self._beat.within(silence_seconds + _BESIDE_SECONDS)
        self._pace.asked()
        answer = self._client.get(self._path, query, silence_seconds=silence_seconds)
        self._open = answer
        try:
            if self._beat.stopping.is_set():
                raise SourceError("stopped")
            yield answer
        finally:
            self._open = None
            answer.close()

    def still_reading(self, silence_seconds: float) -> None:
        """Something came: the thread is not stuck."""
        self._beat.within(silence_seconds + _BESIDE_SECONDS)

    def _interrupt(self) -> None:
        response = self._open
        if response is not None:
            response.interrupt()
