"""The sweep: a walk over all flows, that ends those nobody ended and sees who is still needed.

A flow ends when no direction was seen for as long as its state allows. The walk is a generator of
short steps over memory that is mapped, so that a change never waits for it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from lbctl.datapath import clock, consts, flows
from lbctl.datapath.flows import Mask, Numbers
from lbctl.datapath.tables import Flows, FlowTable, Records, Tables

# A packet that claimed a cell is done with it in microseconds.
BUSY_SECONDS: Final = 3.0
_LISTED: Final = 1024  # ended by one run of a program: half a millisecond

# Place and generation of a cell in each row.
_NAMES: Final = ("place", "generation")


@dataclass(slots=True)
class Swept:
    """What one complete sweep saw."""

    began: float  # the agent's clock
    services: npt.NDArray[np.bool_]  # by service id: a cell has it
    backends: npt.NDArray[np.bool_]  # by backend id
    live_services: Numbers  # by service id: flows that are not over
    live_backends: Numbers  # by backend id
    carried: Records  # by service id, like `service_counters`: by flows that live
    cells: dict[str, int] = field(default_factory=dict)  # by family, those in use
    over: int = 0  # flows that wait for their end
    ended: int = 0  # flows and lone cells that the sweep ended
    abandoned: int = 0  # cells that nobody came back for


class Sweep:
    """Sweeps over the flow tables of one instance."""

    def __init__(self, tables: Tables, flows: Flows) -> None:
        self._tables = tables
        self._flows = flows
        # By family, place and generation: since when they are claimed.
        self._busy: dict[str, dict[tuple[int, int], float]] = {}

    def run(self, began: float, doomed: Collection[int] = ()) -> Iterator[Swept | None]:
        """One sweep: yields None after every step, and at its end what it found. Flows of the
        `doomed` backends, by id, are ended too. It ends without a result if the tables are
        exchanged for others meanwhile."""
        services, backends = self._tables.services.max_entries, self._tables.backends.max_entries
        found = Swept(
            began,
            np.zeros(services, bool),
            np.zeros(backends, bool),
            np.zeros(services, np.int64),
            np.zeros(backends, np.int64),
            np.zeros(services, self._tables.service_counters.records.dtype),
        )
        families = self._flows.flow_tables
        for table in families:
            for _ in self._sweep(table, np.array(sorted(doomed), np.int64), found):
                if self._flows.flow_tables is not families:
                    return
                yield None
        yield found

    def _sweep(self, table: FlowTable, doomed: Numbers, found: Swept) -> Iterator[None]:
        found.cells[table.family] = 0
        busy: dict[tuple[int, int], float] = {}
        for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_BUSY, tuples=False):
            found.cells[table.family] += len(cells)
            self._note(cells, found)
            yield None
            self._look_at_busy(table, cells, busy, found)
            yield from self._end_idle(table, cells, found)
            if len(doomed):
                yield from self._end_doomed(table, cells, doomed, found)
        self._busy[table.family] = busy

    def _end_idle(self, table: FlowTable, cells: Records, found: Swept) -> Iterator[None]:
        heads = flows.take(cells, flows.forward(cells) | flows.lone(cells))
        if not len(heads):
            return
        limits = flows.timeouts(self._tables.config.records[0])
        # The beat first: what is seen after that is not idle.
        beat = clock.current_beat()
        rings = flows.follow(heads, partial(table.at, tuples=False))
        found.over += int(flows.over(heads).sum())
        gone = flows.take(heads, flows.idle(rings, limits, beat))
        yield None
        yield from self._end(table, gone, consts.END_IDLE, found)

    def _end_doomed(
        self, table: FlowTable, cells: Records, doomed: Numbers, found: Swept
    ) -> Iterator[None]:
        heads = flows.take(cells, flows.forward(cells))
        gone = flows.take(heads, np.isin(flows.backend_ids(heads), doomed))
        yield from self._end(table, gone, consts.END_BACKEND, found)

    def _end(self, table: FlowTable, gone: Records, why: int, found: Swept) -> Iterator[None]:
        for start in range(0, len(gone), _LISTED):
            part = gone[start : start + _LISTED]
            found.ended += table.end(part["place"], part["generation"], why)
            yield None

    def _look_at_busy(
        self,
        table: FlowTable,
        cells: Records,
        busy: dict[tuple[int, int], float],
        found: Swept,
    ) -> None:
        """Cells that were claimed for a flow that never came to be: its packet was lost between
        two programs."""
        claimed = flows.take(cells, cells["state"] == consts.STATE_BUSY)
        if not len(claimed):
            return
        since = self._busy.get(table.family, {})
        names = zip(*(claimed[name].tolist() for name in _NAMES), strict=True)
        for name in names:
            busy[name] = since.get(name, found.began)
        old = [name for name, when in busy.items() if found.began - when >= BUSY_SECONDS]
        if old:
            places, generations = np.array(old, np.uint32).T
            found.abandoned += table.end(places, generations, consts.END_IDLE)
            for name in old:
                del busy[name]

    def _note(self, cells: Records, found: Swept) -> None:
        """What these cells refer to."""
        used: Mask = cells["state"] >= consts.STATE_BUSY
        for seen, ids in (
            (found.services, cells["service"][used]),
            (found.backends, flows.backend_ids(cells)[used]),
        ):
            seen[ids[ids < len(seen)]] = True
        flows.add_carried(found.carried, cells)
        counted = flows.counted(cells)
        for live, ids in (
            (found.live_services, cells["service"][counted]),
            (found.live_backends, flows.backend_ids(cells)[counted]),
        ):
            np.add.at(live, ids[ids < len(live)], 1)
