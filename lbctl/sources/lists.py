"""A list of one kind, read to its end, and asked for again before something hard to believe counts.

A server that answers with too little (a cache that is still empty, a restored backup, a proxy in
between) would otherwise take all traffic away in one step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import structlog

from lbctl.errors import SourceError
from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service
from lbctl.sources.asking import Asker, HttpError, ReflectorSettings, Resource
from lbctl.sources.pace import Pace
from lbctl.sources.store import Store, key_of
from lbctl.threads import Beat

M = TypeVar("M", bound=Service | EndpointSlice | Node)

GONE: Final = 410
MAX_BODY: Final = 512 << 20  # bytes of one page; 50,000 services in one are about 100 MB
MAX_OBJECTS: Final = 2_000_000  # of one list
FEW: Final = 3  # so many objects may go at once
_FULL_SPEED = 250  # pages; behind them one every other second
_SLOW_SECONDS = 2.0
_PATIENCE = 10  # times the silence that is allowed, for one page as a whole


@dataclass(slots=True)
class Found(Generic[M]):
    """All pages of a list."""

    objects: list[M] = field(default_factory=list)
    malformed: dict[ObjectKey, str] = field(default_factory=dict)
    remarks: dict[ObjectKey, str] = field(default_factory=dict)
    keys: set[ObjectKey] = field(default_factory=set)
    version: str = ""


class Lister(Generic[M]):
    """Lists one kind. `expected` objects are served already if the store knows none yet."""

    def __init__(
        self,
        resource: Resource[M],
        store: Store,
        settings: ReflectorSettings,
        asker: Asker,
        pace: Pace,
        beat: Beat,
        expected: int,
    ) -> None:
        self._resource = resource
        self._store = store
        self._settings = settings
        self._asker = asker
        self._pace = pace
        self._beat = beat
        self._expected = expected
        self._whole = False  # a page's snapshot expired: take everything in one
        self._log = structlog.get_logger().bind(source="kubernetes", kind=resource.kind.name)

    def list(self) -> Found[M]:
        """What there is. Raises HttpError, SourceError, ObjectError."""
        found = self._pages()
        doubted: frozenset[ObjectKey] = frozenset()
        while (lacking := self._hard_to_believe(found, doubted)) is not None:
            self._log.warning(
                "a list lacks most known objects, listing again before it counts",
                known=self._store.count(self._resource.record) or self._expected,
                listed=len(found.keys),
            )
            doubted |= lacking
            self._beat.pause(self._settings.confirm_seconds)
            again = self._pages()
            if not lacking:  # nothing was known: there is nothing more to compare with
                return again
            found = again
        return found

    def _hard_to_believe(
        self, found: Found[M], doubted: frozenset[ObjectKey]
    ) -> frozenset[ObjectKey] | None:
        """What it lacks, if that is more than half of what is known beside `doubted`, which another
        list lacked before; None if it can be believed."""
        known = self._store.count(self._resource.record)
        if not known:
            return frozenset() if 2 * len(found.keys) < max(self._expected, 1) else None
        lacking = self._store.missing(self._resource.record, found.keys) - doubted
        return lacking if len(lacking) > FEW and 2 * len(lacking) > known - len(doubted) else None

    def _pages(self) -> Found[M]:
        found: Found[M] = Found()
        query = dict(self._resource.selectors)
        if not self._whole:
            # Pages are requests: while faults go on, fewer and larger ones.
            query["limit"] = str(self._settings.page_size << min(self._pace.faults, 6))
        self._whole = False
        for page in range(1, MAX_OBJECTS):
            if page > _FULL_SPEED:
                self._beat.pause(_SLOW_SECONDS)
            try:
                token = self._add_page(found, query)
            except HttpError as error:
                self._whole = error.status == GONE and "continue" in query
                raise
            if not token:
                break
            query["continue"] = token
        return found

    def _add_page(self, found: Found[M], query: dict[str, str]) -> str:
        """Read one page. Returns the token of the next, empty after the last."""
        page = self._resource.kind.decode_list(self._body(query))
        before = len(found.keys)
        found.objects += page.objects
        found.remarks |= page.remarks
        found.malformed |= {m.key: m.message for m in page.malformed}
        found.keys.update(map(key_of, page.objects), found.malformed)
        found.version = page.resource_version
        plural = self._resource.plural
        if page.next and len(found.keys) == before:
            raise SourceError(f"a list of {plural} goes on without end: a page brings nothing new")
        if len(found.objects) > MAX_OBJECTS:
            raise SourceError(f"a list of {plural} has more than {MAX_OBJECTS:,} objects")
        return page.next

    def _body(self, query: dict[str, str]) -> bytes:
        silence = self._settings.list_seconds
        until = time.monotonic() + _PATIENCE * silence
        parts: list[bytes] = []
        size = 0
        with self._asker.ask(query, silence) as response:
            for part in self._parts(response.read_some):
                self._asker.still_reading(silence)
                parts.append(part)
                size += len(part)
                if size > MAX_BODY:
                    raise SourceError(f"an answer has more than {MAX_BODY:,} bytes")
                if time.monotonic() > until:
                    raise SourceError(f"an answer takes more than {_PATIENCE * silence:.0f} s")
        return b"".join(parts)

    def _parts(self, read: Callable[[], bytes]) -> Iterator[bytes]:
        while part := read():
            if self._beat.stopping.is_set():
                raise SourceError("stopped")
            yield part
