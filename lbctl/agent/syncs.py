"""What there is to measure of changes on their way into the maps, by kube-proxy's names.

Changes are counted when an update is taken, and are pending until everything that is known is
written. A slice says when what it follows from happened: what was changed before this agent began
is not measured, since nobody could have written it sooner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lbctl.instruments import Instruments
from lbctl.model.records import ServiceObjects
from lbctl.model.updates import Update
from lbctl.reconcile.reconciler import Reconciler

_MOST: Final = 100_000  # times that are kept while nothing can be written
_NOTHING: Final = ServiceObjects(None)


class Syncs:
    """Told of each update before it is taken, and of each time something was written."""

    def __init__(self, instruments: Instruments, clock: Callable[[], float] = time.time) -> None:
        self._instruments = instruments
        self._clock = clock
        self._began = clock()
        self._services = 0
        self._slices = 0
        self._triggered: list[float] = []

    def noted(self, update: Update, reconciler: Reconciler) -> None:
        """What this changes of what `reconciler` knows."""
        services = slices = 0
        for key, after in update.services.items():
            before = reconciler.known.objects.get(key) or _NOTHING
            services += before.service != after.service
            known = {id(part) for part in before.slices}
            names = {part.key for part in after.slices}
            slices += sum(part.key not in names for part in before.slices)
            for part in after.slices:
                if id(part) not in known:
                    slices += 1
                    if part.triggered > self._began and len(self._triggered) < _MOST:
                        self._triggered.append(part.triggered)
        self._services += services
        self._slices += slices
        found = self._instruments
        if services:
            found.service_changes.inc(services)
        if slices:
            found.endpoint_changes.inc(slices)
        if services or slices:
            found.last_queued.set(self._clock())
        self._tell_pending()

    def written(self, seconds: float, *, full: bool) -> None:
        """Everything that is known is in the maps."""
        found, now = self._instruments, self._clock()
        found.sync_seconds.observe(seconds)
        (found.full_sync_seconds if full else found.partial_sync_seconds).observe(seconds)
        found.last_sync.set(now)
        for triggered in self._triggered:
            found.programming_seconds.observe(max(0.0, now - triggered))
        self._triggered.clear()
        self._services = self._slices = 0
        self._tell_pending()

    def _tell_pending(self) -> None:
        self._instruments.service_changes_pending.set(self._services)
        self._instruments.endpoint_changes_pending.set(self._slices)
