"""Updates: what whoever applies objects hears of their source, and how that source is doing.

Beside the records, not in `sources`: the loop that applies updates knows no thread or connection.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from lbctl.model.records import Node, ObjectKey, ServiceObjects


class SourceStatus(msgspec.Struct, frozen=True):
    """How a source is doing. `problems` are sentences about files or objects, one each, sorted, and
    not all of them if there are very many."""

    connected: bool = False
    synced: bool = False  # every kind has been listed once
    complete: bool = False  # ... and nothing that exists is unread
    last_error: str = ""  # why it is not connected
    last_event: float | None = None  # seconds since the epoch
    problems: tuple[str, ...] = ()
    node_expected: bool = False  # there has to be an object of the own node, or there are others
    restarts: int = 0  # of threads that ended or were stuck
    failing: tuple[str, ...] = ()  # threads that have not done their work for a minute: not ready


class Update(msgspec.Struct, frozen=True):
    """Everything that happened since the last update, coalesced.

    `services` holds, per service touched, what it now is (`service` None: gone). What is programmed
    but was never in an update may be removed once `complete` says that all there is has been read.
    """

    services: dict[ObjectKey, ServiceObjects]
    node: Node | None  # the own node as it now is
    node_changed: bool
    synced: bool
    complete: bool
    status: SourceStatus


class Source(Protocol):
    """A thing that runs threads of its own and reports updates."""

    def start(self) -> None:
        """Begin to read and follow. Raises SourceError if it cannot even be tried."""

    def expect(self, services: int) -> None:
        """Before `start`: so many are served already, by what an earlier agent left. A source that
        may be told nonsense looks twice before it takes most of them away."""

    def stop(self) -> None:
        """End the threads, bounded, and release what they held."""

    def fileno(self) -> int:
        """Readable when `wait` would return something: for select, poll and the like."""

    def wait(self, timeout: float) -> Update | None:
        """What changed, after at most `timeout` seconds; None if nothing did."""

    def status(self) -> SourceStatus:
        """How it is doing now."""

    def service_problems(self) -> dict[ObjectKey, str]:
        """By Service, what of the object cannot be read; empty for objects that are no API's."""

    def due(self) -> float | None:
        """When `status` has to be asked for at the latest, by the monotonic clock: it replaces
        threads that are stuck. None: no need to."""

    def read_again(self) -> None:
        """Read everything anew, whatever is known: somebody doubts it."""

    def api_places(self) -> frozenset[tuple[bytes, int]]:
        """Addresses and port of the API server, as far as known: no object may take these for
        itself."""
