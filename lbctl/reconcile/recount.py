"""Whether counts are exact: what the programs count of live flows, against what the cells say.

Whoever opens or ends a flow counts it, so the numbers are exact. Should they ever not be, a sweep
shows it: all flows of a service were looked at while none of its was opened or ended, and there are
more or less of them than were counted, twice by the same number. The count is then set right, and
that is told.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from lbctl.datapath.flows import Numbers
from lbctl.datapath.tables import Records, Tables
from lbctl.reconcile.sweep import Swept

_MOST_NAMED: Final = 5
Doubts = dict[int, int]  # by id, how many flows more are counted than there are


class _Before(NamedTuple):
    opened: Records  # by service
    services: Records  # live flows
    backends: Records


class Recount:
    """Compares after each sweep at whose start `begin` was called."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._before: _Before | None = None
        self._services: Doubts = {}
        self._backends: Doubts = {}
        self._log = structlog.get_logger()
        self.corrections = 0  # counts that were set right

    def begin(self) -> None:
        """A sweep begins."""
        counters = self._tables.service_counters.records
        backends = self._tables.backend_live.records
        self._before = _Before(
            counters["connections"].copy(), counters["live"].copy(), backends.copy()
        )

    def end(self, found: Swept) -> None:
        """It has ended, and this is what it found."""
        before, self._before = self._before, None
        if before is None:
            return
        counters = self._tables.service_counters.records
        live = self._tables.backend_live.records
        calm = (before.opened == counters["connections"]) & (before.services == counters["live"])
        owners = self._tables.backends.records["service"][: len(live)]
        calm_backends = calm[np.minimum(owners, len(calm) - 1)] & (before.backends == live)
        pair = counters["live"], found.live_services
        self._services = self._settle("services", *pair, calm, self._services)
        pair = live, found.live_backends
        self._backends = self._settle("backends", *pair, calm_backends, self._backends)

    def _settle(
        self,
        kind: str,
        counts: Records,
        cells: Numbers,
        calm: npt.NDArray[np.bool_],
        known: Doubts,
    ) -> Doubts:
        """Set right what was as wrong the last time; returns what is to be looked at again."""
        wrong = _difference(counts, cells, calm)
        sure = [number for number, by in wrong.items() if known.get(number) == by]
        for number in sure:
            # The programs add by atomic instructions, which Python has not. A flow that is opened
            # at this very moment makes it wrong again, and another recount right.
            counts[number] = cells[number]
            del wrong[number]
        if sure:
            self.corrections += len(sure)
            named, number = sure[:_MOST_NAMED], len(sure)
            self._log.warning("counts of live flows were wrong", kind=kind, ids=named, all=number)
        return wrong


def _difference(counts: Records, cells: Numbers, calm: npt.NDArray[np.bool_]) -> Doubts:
    length = min(len(counts), len(cells))
    by = counts[:length].astype(np.int64) - cells[:length]
    return {int(number): int(by[number]) for number in np.flatnonzero((by != 0) & calm[:length])}
