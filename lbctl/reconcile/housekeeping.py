"""Between changes: sweeping, giving ids back, clearing filter bits, and how full each map is."""

from collections import deque
from collections.abc import Iterator

import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.datapath import filters
from lbctl.datapath.tables import Tables
from lbctl.plan.alloc import GRACE_SECONDS
from lbctl.plan.changes import Plan
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.reconcile.clearing import Clearing
from lbctl.reconcile.sweep import Sweep, Swept
from lbctl.status import TableUse

SWEEP_SECONDS = 10.0
BUSY_SWEEP_SECONDS = 1.0  # while a TCP table is filling up
BUSY_LOAD = 0.75
_WARN_AT = (0.9, 0.8)
_OVER = object()


class Housekeeper:
    """Runs sweeps in steps, and does after each what only a sweep allows."""

    def __init__(self, tables: Tables, planner: Planner) -> None:
        self.planner = planner
        self._tables = tables
        self._sweep = Sweep(tables)
        self._running: Iterator[Swept | None] | None = None
        self._next = 0.0
        self._clearing: Clearing | None = None
        self._clear_steps: Iterator[None] = iter(())
        self._flows: dict[str, int] = {}  # entries by map, as of the last sweep
        self._node_addresses: tuple[bytes, ...] = ()
        # Those that the node had, and when it lost them: flows may use them, for the filters.
        self._lost: deque[tuple[float, bytes]] = deque()
        self._gone: deque[tuple[float, bytes]] = deque()  # frontends' keys, for the filters
        self._filters_stale = True
        self._warned: dict[str, float] = {}
        self.problem = ""  # why the last sweep was not finished
        self._log = structlog.get_logger()

    def note(self, plan: Plan, now: float) -> None:
        """A plan was carried out: what it removed has filter bits that may go one day."""
        self._gone.extend((now, key) for key in plan.frontends_gone)
        if self._clearing:
            self._clearing.note(plan)
        if plan.frontends_gone or plan.lowered:
            self._filters_stale = True

    def expect(self, plan: Plan) -> None:
        """A plan will be carried out. Servers of its that run on the node itself may answer from
        any of the node's addresses."""
        bits = filters.served_by_node(plan.backend_identities, self._node_addresses)
        filters.set_bits(self._tables.backend_filter, bits)

    def set_node_addresses(self, addresses: tuple[bytes, ...], now: float) -> None:
        """Addresses of the node, from which masqueraded packets, answers of its own servers and
        its own flows come: they need their bits now."""
        if addresses == self._node_addresses:
            return
        lost = [a for a in self._node_addresses if a not in addresses]
        self._lost.extend((now, address) for address in lost)
        self._filters_stale |= bool(lost)
        self._node_addresses = addresses
        tables = self._tables
        filters.set_bits(tables.service_filter, filters.service_bits(addresses))
        identities = filters.identities(tables.backends.records)
        bits = filters.served_by_node(identities, addresses)
        filters.set_bits(tables.backend_filter, bits)
        if self._clearing:
            self._clearing.note_addresses(addresses)

    def due(self) -> float:
        """When `step` has something to do: at once while it is not done with the last."""
        return 0.0 if self.running() else self._next

    def step(self, now: float) -> bool:
        """One short step (some ms). Returns whether a sweep ended and something was freed."""
        if self._clearing:
            if next(self._clear_steps, _OVER) is _OVER:
                self._clearing = None
            return False
        if self._running is None:
            if now < self._next:
                return False
            self._running = self._sweep.run(now)
        try:
            found = next(self._running)
        except LbError as error:
            self._log.error("the sweep failed", error=error.message, hint=advice.on(error))
            self.problem = f"flows that ended are not removed: {error.message} {advice.on(error)}"
            self._running, self._next = None, now + SWEEP_SECONDS
            return False
        if found is None:
            return False
        self._running, self.problem = None, ""
        busy = self._sweep.tcp_load() > BUSY_LOAD
        self._next = now + (BUSY_SWEEP_SECONDS if busy else SWEEP_SECONDS)
        return self._finish(found)

    def running(self) -> bool:
        """Whether a sweep or what follows it is under way."""
        return self._running is not None or self._clearing is not None

    def tables(self) -> dict[str, TableUse]:
        """How full the maps are that can fill up; flows as of the last sweep."""
        planner, tables = self.planner, self._tables
        used = {
            "frontends": (len(planner.claims), tables.frontends.max_entries),
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
                    self._log.warning(
                        "a map is nearly full",
                        map=name,
                        entries=use.entries,
                        limit=use.limit,
                        option=use.flag,
                    )
            self._warned[name] = level
        return said

    def _finish(self, found: Swept) -> bool:
        self._flows = found.entries
        freed = self.planner.recover(found.began, found.services, found.backends)
        writes.clear(freed, self._tables)
        if freed.services or freed.backends:
            self._filters_stale = True
        if self._filters_stale:
            self._clear_filters(found)
        self._log.debug(
            "swept",
            flows=found.entries,
            ended=found.ended,
            freedServices=len(freed.services),
            freedBackends=len(freed.backends),
        )
        return bool(freed.services or freed.backends)

    def _clear_filters(self, found: Swept) -> None:
        """Only bits that a change or a flow has needed since the sweep began stay."""
        while self._gone and self._gone[0][0] + GRACE_SECONDS <= found.began:
            self._gone.popleft()
        gone = [key for _, key in self._gone]
        self._clearing = Clearing(self._tables, self.planner.claims, found, gone)
        while self._lost and self._lost[0][0] + GRACE_SECONDS <= found.began:
            self._lost.popleft()
        lost = [address for _, address in self._lost]
        self._clear_steps = self._clearing.run((*self._node_addresses, *lost))
        self._filters_stale = bool(gone or lost)
