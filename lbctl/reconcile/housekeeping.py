"""Between changes: sweeping, giving ids back, and how full each map is."""

from collections.abc import Iterator

import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.datapath.tables import Tables
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.reconcile.sweep import Sweep, Swept
from lbctl.status import TableUse

SWEEP_SECONDS = 10.0
BUSY_SWEEP_SECONDS = 1.0  # while a TCP table is filling up
BUSY_LOAD = 0.75
_WARN_AT = (0.9, 0.8)


class Housekeeper:
    """Runs sweeps in steps, and does after each what only a sweep allows."""

    def __init__(self, tables: Tables, planner: Planner) -> None:
        self.planner = planner
        self._tables = tables
        self._sweep = Sweep(tables)
        self._running: Iterator[Swept | None] | None = None
        self._next = 0.0
        self._flows: dict[str, int] = {}  # entries by map, as of the last sweep
        self._warned: dict[str, float] = {}
        self._log = structlog.get_logger()

    def due(self) -> float:
        """When `step` has something to do: at once while it is not done with the last."""
        return 0.0 if self.running() else self._next

    def step(self, now: float) -> bool:
        """One short step (some ms). Returns whether a sweep ended and something was freed."""
        if self._running is None:
            if now < self._next:
                return False
            self._running = self._sweep.run(now)
        try:
            found = next(self._running)
        except LbError as error:
            self._log.error("the sweep failed", error=error.message, hint=advice.on(error))
            self._running, self._next = None, now + SWEEP_SECONDS
            return False
        if found is None:
            return False
        self._running = None
        busy = self._sweep.tcp_load() > BUSY_LOAD
        self._next = now + (BUSY_SWEEP_SECONDS if busy else SWEEP_SECONDS)
        return self._finish(found)

    def running(self) -> bool:
        """Whether a sweep is under way."""
        return self._running is not None

    def tables(self) -> dict[str, TableUse]:
        """How full the maps are that can fill up; flows as of the last sweep."""
        planner, tables = self.planner, self._tables
        used = {
            "frontends": (len(planner.claims), planner.room.all.frontends),
            "services": (
                planner.service_ids.in_use + planner.service_ids.resting,
                tables.services.max_entries,
            ),
            "backends": (
                planner.backend_ids.in_use + planner.backend_ids.resting,
                tables.backends.max_entries,
            ),
            "slots": (
                planner.regions.in_use + planner.regions.resting,
                tables.slots.max_entries,
            ),
        }
        for name, table in (("flows4", tables.flows4), ("flows6", tables.flows6)):
            if name in self._flows:
                used[name] = (self._flows[name], table.max_entries)
        return {name: TableUse(*pair, advice.flag_of(name)) for name, pair in used.items()}

    def warnings(self) -> list[str]:
        """A sentence for each map that is nearly full; logged when one gets fuller."""
        said = []
        for name, use in self.tables().items():
            load = use.entries / use.limit
            level = next((share for share in _WARN_AT if load >= share), 0.0)
            if level:
                said.append(
                    f"map {name} is {load:.0%} full ({use.entries:,} of {use.limit:,} entries); "
                    f"start the agent with a larger {use.flag}"
                )
                if level > self._warned.get(name, 0.0):
                    self._log.warning(said[-1])
            self._warned[name] = level
        return said

    def _finish(self, found: Swept) -> bool:
        self._flows = found.entries
        freed = self.planner.recover(found.began, found.services, found.backends)
        writes.clear(freed, self._tables)
        self._log.debug(
            "swept",
            flows=found.entries,
            ended=found.ended,
            freed_services=len(freed.services),
            freed_backends=len(freed.backends),
        )
        return bool(freed.services or freed.backends)
