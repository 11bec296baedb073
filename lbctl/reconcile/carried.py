"""What services have carried, flows that live included, as of the last sweep: for who asks often.

A sweep looks at every flow anyway; a scrape that did would take as long for each. What ends while a
sweep is under way may be missed by it, and is there with the next: what is said of a service never
gets less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lbctl.datapath.flows import CARRIED
from lbctl.datapath.tables import Records, Tables


class Carried:
    """Adds up after each sweep at whose start `begin` was called."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._before: Records | None = None
        # By service id, like `service_counters`. Replaced as a whole, for readers in other threads;
        # None until there was a sweep.
        self.totals: Records | None = None

    def begin(self) -> None:
        """A sweep begins."""
        self._before = self._tables.service_counters.records.copy()

    def end(self, living: Records) -> None:
        """It has ended; flows that it found have carried this, by service id."""
        ended, self._before = self._before, None
        if ended is None:
            return
        said = self.totals
        if said is None:
            # The agent before said at least what there was then. Flows that ended meanwhile are
            # counted twice, once: less than before would be taken for a restart of the counters.
            ended, said = self._tables.service_counters.records, ended
        found = said.copy() if len(said) >= len(living) else np.zeros_like(living)
        for name in CARRIED:
            found[name][: len(said)] = said[name]
            column = found[name][: len(living)]
            np.maximum(column, ended[name][: len(living)] + living[name], out=column)
        self.totals = found

    def forget(self, services: Sequence[int]) -> None:
        """These ids are free: whoever gets them begins with nothing."""
        if self.totals is not None and services:
            found = self.totals.copy()
            found[services] = np.zeros((), found.dtype)
            self.totals = found
