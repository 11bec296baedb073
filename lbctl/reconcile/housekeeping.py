"""Between changes: sweeping, giving ids back, and how full each table is."""

import time
from collections.abc import Collection, Iterator

import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.datapath.tables import Flows, NoFlows, Records, Tables
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.reconcile.carried import Carried
from lbctl.reconcile.recount import Recount
from lbctl.reconcile.sweep import Sweep, Swept
from lbctl.status import TableUse

SWEEP_SECONDS = 10.0
BUSY_SWEEP_SECONDS = 1.0  # while flows wait for their end, or a table is filling up
BUSY_LOAD = 0.5
_SHARE = 20  # a sweep that took a second is followed by so many of rest
_WARN_AT = (0.9, 0.8)
_SAID_SECONDS = 60.0  # that a table had no room
NO_FLOWS = NoFlows()


class Housekeeper:
    """Runs sweeps in steps, and does after each what only a sweep allows."""

    def __init__(
        self,
        tables: Tables,
        planner: Planner,
        flows: Flows = NO_FLOWS,
        most_cells: int = 0,
    ) -> None:
        """`most_cells` is what a family's flow table may grow to."""
        self.planner = planner
        self._tables = tables
        self._flows = flows
        self._most_cells = most_cells
        self._sweep = Sweep(tables, flows)
        self._recount = Recount(tables)
        self._carried = Carried(tables)
        self._running: Iterator[Swept | None] | None = None
        self._spent = 0.0  # in the steps of this sweep
        self._next = 0.0
        self._doomed: set[int] = set()  # backends whose flows the next sweep ends
        self._ending: set[int] = set()  # ... and this one
        self._warned: dict[str, float] = {}
        self._refused: dict[str, int] = {}  # by table, as of the last look
        self._refusing: dict[str, float] = {}  # until when that it refuses is said
        self.problem = ""  # why the last sweep was not finished
        self._log = structlog.get_logger()

    def end_flows(self, backends: Collection[int]) -> None:
        """End all flows of these backends, by id, at once; they must have left all sets. Whose
        connection it was is told at its next packet."""
        self._doomed.update(backends)
        self._next = 0.0

    @property
    def corrections(self) -> int:
        """Counts of live flows that were wrong and set right."""
        return self._recount.corrections

    @property
    def carried(self) -> Records | None:
        """By service id, what its flows have carried as of the last sweep; None before one."""
        return self._carried.totals

    def due(self) -> float:
        """When `step` has something to do: at once while it is not done with the last."""
        return 0.0 if self.running() else self._next

    def step(self, now: float) -> bool:
        """One short step, less than a millisecond. Returns whether a sweep ended and something was
        freed."""
        if self._running is None:
            if now < self._next:
                return False
            self._ending, self._doomed = self._doomed, set()
            self._running, self._spent = self._sweep.run(now, self._ending), 0.0
            self._recount.begin()
            self._carried.begin()
        began = time.monotonic()
        try:
            found = next(self._running)
        except StopIteration:  # the tables are others now
            self._begin_again(now)
            return False
        except LbError as error:
            self._log.error("the sweep failed", error=error.message, hint=advice.on(error))
            self.problem = f"flows that ended are not removed: {error.message} {advice.on(error)}"
            self._begin_again(now + SWEEP_SECONDS)
            return False
        self._spent += time.monotonic() - began
        if found is None:
            return False
        self._running, self.problem = None, ""
        if not self._doomed:
            self._next = now + max(self._pause(found), _SHARE * self._spent)
        return self._finish(found)

    def running(self) -> bool:
        """Whether a sweep is under way."""
        return self._running is not None

    def tables(self) -> dict[str, TableUse]:
        """How full the tables are that can fill up."""
        planner = self.planner
        taken = {
            "frontends": len(planner.claims),
            "services": planner.service_ids.taken,
            "backends": planner.backend_ids.taken,
            "slots": planner.regions.taken,
        }
        found = {}
        for name, number in taken.items():
            now, most = getattr(planner.now, name), getattr(planner.room.all, name)
            found[name] = TableUse(number, now, advice.flag_of(name), most)
        for table in self._flows.flow_tables:
            rooms = table.rooms()
            most = max(self._most_cells, rooms.cells)
            flag = advice.FLAGS["flows"]
            found[f"flows{table.family}"] = TableUse(
                rooms.used, rooms.cells, flag, most, table.evicted(), table.refused()
            )
        return found

    def warnings(self) -> list[str]:
        """A sentence for each table that is nearly full and cannot grow, which is logged when one
        gets fuller; and for each that had no room for connections a moment ago."""
        said, now = [], time.monotonic()
        for name, use in self.tables().items():
            if use.refused > self._refused.setdefault(name, use.refused):
                self._refused[name], self._refusing[name] = use.refused, now + _SAID_SECONDS
            if now < self._refusing.get(name, now):
                said.append(
                    f"{name} had no room for connections, {use.refused:,} by now: those of who "
                    f"holds most are refused first; start the agent with a larger {use.flag}"
                )
            load = use.entries / use.most
            level = next((share for share in _WARN_AT if load >= share), 0.0)
            if level:
                said.append(
                    f"map {name} is {load:.0%} full ({use.entries:,} of {use.most:,} entries); "
                    f"start the agent with a larger {use.flag}"
                )
                if level > self._warned.get(name, 0.0):
                    self._log.warning(
                        "a map is nearly full",
                        map=name,
                        entries=use.entries,
                        limit=use.limit,
                        option=use.flag,
                    )
            self._warned[name] = level
        return said

    def _begin_again(self, at: float) -> None:
        self._running, self._next = None, at
        self._doomed |= self._ending

    def _pause(self, found: Swept) -> float:
        rooms = [table.rooms() for table in self._flows.flow_tables]
        filling = any(room.used > BUSY_LOAD * room.cells for room in rooms)
        return BUSY_SWEEP_SECONDS if found.over or filling else SWEEP_SECONDS

    def _finish(self, found: Swept) -> bool:
        self._recount.end(found)
        self._carried.end(found.carried)
        # By both: a flow that is over is not counted as live, and may have been opened behind the
        # sweep's back.
        services = found.services | (self._tables.service_counters.records["live"] != 0)
        live = self._tables.backend_live.records
        backends = found.backends.copy()
        backends[: len(live)] |= live[: len(backends)] != 0
        freed = self.planner.recover(found.began, services, backends)
        writes.clear(freed, self._tables)
        self._carried.forget(freed.services)
        self._log.debug(
            "swept",
            cells=found.cells,
            over=found.over,
            ended=found.ended,
            abandoned=found.abandoned,
            freedServices=len(freed.services),
            freedBackends=len(freed.backends),
        )
        return bool(freed.services or freed.backends)
