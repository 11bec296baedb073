"""From updates of the source to plans carried out: which ports changed, and what is left to do."""

import time
from collections.abc import Iterable
from itertools import chain

import structlog

from ebpf.errors import LbError
from lbctl.datapath.tables import Tables
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.model.updates import Update
from lbctl.program import readback, writes
from lbctl.reconcile.housekeeping import Housekeeper
from lbctl.reconcile.notes import Notes
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import (
    ResolvedPort,
    foreign_addresses,
    own_addresses_in_range,
    resolve,
)

# Services planned at once when nothing is programmed yet: bounds the memory a first sync takes.
_FIRST_BATCH = 2000
# After a map refused an update, or had no room.
RETRY_SECONDS = 2.5


class Reconciler:
    """Keeps the maps equal to the objects. Nothing is written before the first complete list."""

    def __init__(self, tables: Tables, node: NodeFacts) -> None:
        self._tables = tables
        self._node = node
        self._log = structlog.get_logger()
        self._objects: dict[ObjectKey, ServiceObjects] = {}
        self._ports: dict[ObjectKey, tuple[str, ...]] = {}  # names of what is wanted
        self._foreign: dict[ObjectKey, tuple[bytes, ...]] = {}  # addresses that others serve
        self._dirty: dict[ObjectKey, None] = {}
        self._notes = Notes()
        self._retry: float | None = None
        self.synced = False
        self.planner, leftovers = readback.read(tables, time.monotonic())
        readback.repair(self.planner, leftovers, tables)
        for sentence in leftovers.describe():
            self._log.warning(sentence)
        self._unclaimed = set(self.planner.services)  # programmed before, not yet seen
        self.housekeeper = Housekeeper(tables, self.planner)
        self.had_services = bool(self._unclaimed)
        self._touched: set[ObjectKey] = set()  # since `take_touched`
        self._left = True  # an earlier agent may have seen some leave

    def objects(self, key: ObjectKey) -> ServiceObjects | None:
        """What is known of a service; None if there is none."""
        return self._objects.get(key)

    def every_object(self) -> Iterable[tuple[ObjectKey, ServiceObjects]]:
        """All that is known of services."""
        return self._objects.items()

    def take_touched(self) -> tuple[set[ObjectKey], bool]:
        """Services written since the last call, and whether endpoints stopped serving."""
        found = self._touched, self._left
        self._touched, self._left = set(), False
        return found

    @property
    def services(self) -> int:
        """Services with at least one port that is served here."""
        return len(self._ports)

    def warnings(self) -> list[str]:
        """Sentences about objects, and about what did not fit."""
        return self._notes.warnings()

    @property
    def hints_changed(self) -> bool:
        """Whether `take_hints` has something."""
        return self.synced and self._notes.hints_changed

    def take_hints(self) -> dict[str, str] | None:
        """By stored name, what is to say of the ports whose endpoints have topology hints; None if
        nothing has changed since the last call, or nothing is known yet."""
        return self._notes.take_hints() if self.synced else None

    def retry_at(self) -> float | None:
        """When `retry` has something to do, on the monotonic clock."""
        return self._retry

    @property
    def refused(self) -> bool:
        """Whether a map refused an update of the last `apply`: then much is not written."""
        return self._notes.refused

    def set_node(self, node: NodeFacts) -> None:
        """Facts about the node; if they differ, every service is looked at again."""
        if node != self._node:
            self._node = node
            self._dirty.update(dict.fromkeys(self._objects))

    def take(self, update: Update) -> None:
        """Note what an update says; `apply` carries it out."""
        for key, objects in update.services.items():
            if objects.service is None:
                self._objects.pop(key, None)
            else:
                self._objects[key] = objects
            self._dirty[key] = None

    def apply(self, complete: bool) -> bool:
        """Write everything that is noted. `complete`: what was not seen by now does not exist.

        Returns whether something was written. What fails is kept and tried again.
        """
        keys = list(self._dirty)
        self._dirty.clear()
        self._retry = None
        self._notes.begin()
        step = len(keys) or 1 if self.synced or self.had_services else _FIRST_BATCH
        wrote = False
        for start in range(0, len(keys), step):
            wrote |= self._apply_some(keys[start : start + step])
        if self._share():
            wrote |= self._write({}, {})
        if complete and self._unclaimed:
            wrote |= self._write(dict.fromkeys(self._unclaimed), {})
            self._unclaimed.clear()
        elif complete and not self.synced:
            wrote |= self._write({}, {})  # frontends of nobody go with the first complete plan
        self.synced = True
        return wrote

    def _share(self) -> bool:
        """Tell which addresses are not ours alone. Returns whether that is news."""
        foreign = {*own_addresses_in_range(self._node), *chain(*self._foreign.values())}
        return self.planner.claims.share(frozenset(self._node.addresses), frozenset(foreign))

    def _apply_some(self, keys: list[ObjectKey]) -> bool:
        changes: dict[str, ResolvedPort | None] = {}
        owners: dict[str, ObjectKey] = {}
        self._touched.update(keys)
        for key in keys:
            ports = self._resolve(key)
            before = self._ports.pop(key, ())
            changes.update(dict.fromkeys(before))
            changes.update((port.name, port) for port in ports)
            owners.update((port.name, key) for port in ports)
            if ports:
                self._ports[key] = tuple(port.name for port in ports)
            self._notes.resolved(key, ports)
        stored = {self.planner.stored_name(name): port for name, port in changes.items()}
        self._notes.hinted(stored)
        self._unclaimed.difference_update(stored)
        return self._write(changes, owners)

    def _resolve(self, key: ObjectKey) -> tuple[ResolvedPort, ...]:
        objects = self._objects.get(key)
        self._foreign.pop(key, None)
        if objects is None or objects.service is None:
            return ()
        if foreign := foreign_addresses(objects.service, self._node):
            self._foreign[key] = foreign
        return resolve(objects.service, objects.slices, self._node)

    def _write(self, changes: dict[str, ResolvedPort | None], owners: dict[str, ObjectKey]) -> bool:
        now = time.monotonic()
        plan = self.planner.plan(changes, now)
        self.housekeeper.expect(plan)
        try:
            writes.apply(plan, self._tables)
        except LbError as error:
            self.start_over(error)
            return True
        self.housekeeper.note(plan, now)
        self._left |= bool(plan.lowered)
        self._notes.planned(changes, plan.warnings, plan.failed)
        for name in plan.failed:
            self._dirty[owners[name]] = None
            self._retry = now + RETRY_SECONDS
        return bool(plan.writes())

    def start_over(self, error: LbError) -> None:
        """A map refused an update: what is programmed is read back, and all is planned again."""
        self._notes.map_refused(error)
        now = time.monotonic()
        self.planner, leftovers = readback.read(self._tables, now)
        readback.repair(self.planner, leftovers, self._tables)
        self.housekeeper.planner = self.planner
        wanted = {
            self.planner.stored_name(name) for names in self._ports.values() for name in names
        }
        self._unclaimed.update(self.planner.services.keys() - wanted)
        self._dirty.update(dict.fromkeys(self._objects))
        self._retry = now + RETRY_SECONDS
