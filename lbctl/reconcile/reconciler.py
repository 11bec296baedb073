"""From updates of the source to plans carried out: which ports changed, and what is left to do."""

import time
from collections.abc import Iterable, Mapping
from itertools import chain
from types import MappingProxyType

import structlog

from ebpf.errors import LbError
from lbctl.datapath.regions import table_places
from lbctl.datapath.tables import Flows, Tables
from lbctl.model.records import ObjectKey
from lbctl.model.updates import Update
from lbctl.plan.alloc import Exhausted
from lbctl.plan.rooms import Need, sum_of
from lbctl.program import readback, writes
from lbctl.reconcile.audit import Audit
from lbctl.reconcile.corrections import Corrections
from lbctl.reconcile.departures import Departures
from lbctl.reconcile.housekeeping import NO_FLOWS, Housekeeper
from lbctl.reconcile.known import Known
from lbctl.reconcile.notes import Notes
from lbctl.reconcile.places import Places, target_of, trimmed
from lbctl.reconcile.reserved import Reserved
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import ResolvedPort, Target
from lbctl.resolve.service import foreign_addresses, own_addresses_in_range, resolve
from lbctl.troubles import Said

# Services planned at once when nothing is programmed yet: bounds the memory a first sync takes.
_FIRST_BATCH = 2000
# After a map refused an update, or had no room; twice as long each time it was in vain.
RETRY_SECONDS = 2.5
MOST_RETRY_SECONDS = 60.0
# While shares of new endpoints grow: so often in the time that they have, but not all the time.
WARMING_STEPS = 30
WARMING_SECONDS = 1.0
MOST_WARMING_SECONDS = 30.0
NO_ONE: Mapping[str, Exhausted] = MappingProxyType({})


class Reconciler:
    """Keeps the maps equal to the objects. Nothing is written before the first complete list."""

    def __init__(
        self,
        tables: Tables,
        node: NodeFacts,
        flows: Flows = NO_FLOWS,
        most: Need | None = None,
        most_cells: int = 0,
    ) -> None:
        """`most` is what the maps may hold when they have grown (None: they do not grow), and
        `most_cells` each table of `flows`."""
        self._tables = tables
        self._most = most
        self._node = node
        self._log = structlog.get_logger()
        self.known = Known()
        self._ports: dict[ObjectKey, tuple[str, ...]] = {}  # names of what is wanted
        self._foreign: dict[ObjectKey, tuple[bytes, ...]] = {}  # addresses that others serve
        self._notes = Notes()
        self._places = Places()
        self._reserved = Reserved()
        self._told = (0, 0, 0)  # versions of what notes were made of last
        self._retry: float | None = None
        self._patience = RETRY_SECONDS
        self._settled = -RETRY_SECONDS  # when who is served was last looked at
        self._look_again = 0.0  # ... and when it will be, though nothing changed
        self.synced = False
        self.complete_pass = True  # the next `apply` looks at every service
        self.planner, leftovers = readback.read(tables, time.monotonic(), most)
        readback.repair(self.planner, leftovers, tables)
        for sentence in leftovers.describe():
            self._log.warning("repairing what an earlier agent left", what=sentence)
        self._unclaimed = set(self.planner.services)  # programmed before, not yet seen
        self.housekeeper = Housekeeper(tables, self.planner, flows, most_cells)
        self.audit = Audit(tables, Corrections())
        self.departures = Departures(tables, self.housekeeper.end_flows)
        self._warmed = 0.0  # when shares were last made to grow
        self.had_services = bool(self._unclaimed)
        self._touched: set[ObjectKey] = set()  # since `take_touched`
        self._left = True  # an earlier agent may have seen some leave

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
        return [one.text for one in self._notes.said()]

    def said(self) -> list[Said]:
        """The same with their kinds."""
        return self._notes.said()

    @property
    def hints_changed(self) -> bool:
        """Whether `take_hints` has something."""
        return self.synced and self._notes.changed

    def take_hints(self) -> dict[str, str] | None:
        """By stored name, what is to say of the ports whose endpoints have topology hints; None if
        nothing has changed since the last call, or nothing is known yet."""
        return self._notes.take_hints() if self.synced else None

    def troubles(self) -> dict[str, tuple[str, ...]]:
        """By service (namespace/name), why it is not served as its object says."""
        return self._notes.troubles()

    @property
    def told(self) -> int:
        """Grows whenever `complaints` are others."""
        return self._notes.told

    def complaints(self) -> dict[ObjectKey, tuple[tuple[str, str], ...]]:
        """By service, the same with the reasons that Events have."""
        return self._notes.complaints()

    @property
    def waiting(self) -> bool:
        """Whether ports wait for room."""
        return bool(self._places.waiting)

    def expected_places(self) -> int:
        """About how many places of tables by hash all services need that are known."""
        return self.known.expected_places(self._node)

    def waiting_for(self) -> Need:
        """What those ask for together that wait for maps to grow."""
        waiting = self._places.waiting.values()
        return sum_of(found.need for found in waiting if self.planner.grows(found.error))

    def grown(self) -> None:
        """Maps were exchanged for larger ones. While programs are in place that use the former
        ones, there is no more room than in those."""
        now = self._tables.former() or self._tables
        places = table_places(now.hash_tables.records).size
        self.planner.grow(readback.room_of(now), readback.contents_of(self._tables), places)
        self._told = self._told[0], -1, -1  # who waits for that, and who for good

    def freed(self) -> bool:
        """Something was freed; returns whether `apply` has to look who can have it."""
        tables = self.planner.due_tables()
        self.known.mark_all(tables)
        if not self._places.waiting:
            return bool(tables)
        self._places.changed = True
        self._settled = -RETRY_SECONDS
        self._patience = RETRY_SECONDS
        return True

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
            self.known.mark_all()
            self.complete_pass = True

    def take(self, update: Update) -> None:
        """Note what an update says; `apply` carries it out."""
        self.known.take(update)

    def apply(self, complete: bool) -> bool:
        """Write everything that is noted. `complete`: what was not seen by now does not exist.

        Returns whether something was written. What fails is kept and tried again.
        """
        known, grades = self.known, self._places.grades
        known.mark_all(self._reserved.take(known.dirty, known.objects, self._node))
        keys = [key for key in known.dirty if key not in grades]
        large = [key for key in known.dirty if key in grades]
        if not self.synced:  # those first that are served, should there not be room for all
            keys.sort(key=known.seniority)
        self._retry = None
        self._notes.begin()
        step = len(keys) or 1 if self.synced or self.had_services else _FIRST_BATCH
        wrote = False
        # Ports of services that ask for much come last: nobody has to wait for them.
        last: dict[str, ResolvedPort | None] = {}
        for start in range(0, len(keys), step):
            wrote |= self._apply_some(keys[start : start + step], last)
        if large:
            wrote |= self._apply_some(large, last)
        if last and not self.refused:
            wrote |= self._write(last)
        if self._share():
            wrote |= self._write({})
        if complete and self._unclaimed:
            wrote |= self._write(dict.fromkeys(self._unclaimed))
            self._unclaimed.clear()
        elif complete and not self.synced:
            wrote |= self._write({})  # frontends of nobody go with the first complete plan
        if not self.refused:
            wrote |= self._settle()
        self._tell()
        self.synced = True
        if not self.refused:  # else all is planned again
            self.complete_pass = False
        return wrote

    def _share(self) -> bool:
        """Tell which addresses are not ours alone, as far as the room goes that is kept for small
        services. Returns whether that is news."""
        foreign = {*own_addresses_in_range(self._node), *chain(*self._foreign.values())}
        most = self.planner.room.spare.frontends
        if len(foreign) > most:
            foreign = set(sorted(foreign)[:most])
        return self.planner.claims.share(frozenset(self._node.addresses), frozenset(foreign))

    def _apply_some(self, keys: Iterable[ObjectKey], last: dict[str, ResolvedPort | None]) -> bool:
        """Write what these are now, but for what is put into `last`."""
        changes: dict[str, ResolvedPort | None] = {}
        self._touched.update(keys)
        for key in keys:
            targets = self.known.dirty.pop(key, None)
            ports = self._resolve(key, targets)
            gone: tuple[str, ...] = ()
            if targets is None:
                gone = self._ports.pop(key, ())
                if ports:
                    self._ports[key] = tuple([port.name for port in ports])
                self._notes.resolved(key, ports)
            self._places.judge(self.planner, key, self._ports.get(key, ()), ports)
            into = last if key in self._places.grades else changes
            into.update(dict.fromkeys(gone))
            for port in ports:
                into[port.name] = port
        for part in (changes, last):
            stored = {self.planner.stored_name(name): port for name, port in part.items()}
            self._notes.hinted(stored)
            self._unclaimed.difference_update(stored)
        return (
            self._write(changes, self._places.queued(self.planner, changes)) if changes else False
        )

    def _resolve(self, key: ObjectKey, targets: set[Target] | None) -> list[ResolvedPort]:
        objects = self.known.objects.get(key)
        self._foreign.pop(key, None)
        if objects is None or objects.service is None:
            return []
        if foreign := foreign_addresses(objects.service, self._node):
            self._foreign[key] = foreign
        limit = self.planner.room.endpoints_of_a_port
        found = resolve(objects.service, objects.slices, self._node, targets, self._reserved.ports)
        return [trimmed(port, limit) for port in found]

    def _write(
        self,
        changes: dict[str, ResolvedPort | None],
        queued: Mapping[str, Exhausted] = NO_ONE,
        grades: Mapping[ObjectKey, int] | None = None,
    ) -> bool:
        """Plan changes and carry them out, but for those `queued`. `grades`: of the services that
        have to leave a part to others; None for all that are not small."""
        now, places = time.monotonic(), self._places
        wanted = changes
        if queued:
            wanted = {name: port for name, port in changes.items() if name not in queued}
        plan = self.planner.plan(wanted, now, places.grades if grades is None else grades)
        try:
            writes.apply(plan, self._tables)
        except LbError as error:
            self.start_over(error)
            return True
        self.audit.touched(self.planner, [*map(self.planner.stored_name, wanted)])
        self.departures.note(plan)
        self._left |= bool(plan.lowered)
        without = {**plan.failed, **queued}
        places.served(name for name in wanted if name not in without)
        for name, why in without.items():
            port = changes[name]
            if port is not None:
                places.wait(name, port, why)
        return bool(plan.writes())

    def _settle(self) -> bool:
        """See to it that those are served who should be, if these may be others than now."""
        places, now = self._places, time.monotonic()
        if not places.unsettled(self.planner):
            self._patience = RETRY_SECONDS
            return False
        due = self._settled + RETRY_SECONDS if places.changed else self._look_again
        if now < due:
            self._retry = due
            return False
        self._settled = now
        choice = places.choose(self.planner, self._ports, self.known.seniority)
        wrote = False
        if choice.out:
            leaving = places.leave(self.planner, choice.out)
            wrote = self._write(dict.fromkeys(choice.out))
            places.waiting.update(leaving)
        if choice.into and not self.refused:
            wrote |= self._write(self._resolved_again(choice.into), grades=places.last)
        if wrote:
            self._patience = RETRY_SECONDS
        self._look_again = now + self._waited()
        if places.unsettled(self.planner) and not self.refused:
            self._retry = self._look_again
        return wrote

    def warming_due(self) -> float | None:
        """When `warm` has something to do."""
        starts = [state.settings.slow_start for state in self.planner.warming.values()]
        if not starts:
            return None
        return self._warmed + min(
            max(min(starts) / WARMING_STEPS, WARMING_SECONDS), MOST_WARMING_SECONDS
        )

    def warm(self, now: float) -> None:
        """Endpoints that are new get a share that is larger by now."""
        self._warmed = now
        names = list(self.planner.warming)
        try:
            writes.apply(self.planner.warm(now), self._tables)
        except LbError as error:
            self.start_over(error)
            return
        self.audit.touched(self.planner, names)

    def _waited(self) -> float:
        """How long to wait now, and twice as long the next time."""
        patience = self._patience
        self._patience = min(2 * patience, MOST_RETRY_SECONDS)
        return patience

    def _resolved_again(self, names: Iterable[str]) -> dict[str, ResolvedPort | None]:
        """Ports that were not written when they were resolved."""
        by_service: dict[ObjectKey, set[str]] = {}
        for name in names:
            by_service.setdefault(self._places.waiting[name].service, set()).add(name)
        return {
            port.name: port
            for key, wanted in by_service.items()
            for port in self._resolve(key, set(map(target_of, wanted)))
            if port.name in wanted
        }

    def _tell(self) -> None:
        """Sentences about all services together, where they may be others than before."""
        versions = *self.planner.version, self._places.version
        if versions[0] != self._told[0]:
            self._notes.contested(self.planner.contested())
        if versions[1] != self._told[1]:
            grows = self.planner.now.backends < self.planner.room.all.backends
            self._notes.without_table(self.planner.without_table.values(), grows)
        if versions[2] != self._told[2]:
            self._notes.without_room(self._places.sentences(self.planner, self._ports))
        self._told = versions
        self._notes.log_news()

    @property
    def at_rest(self) -> bool:
        """Whether all that is known is written, as far as there is room."""
        return self.synced and not self.known.dirty and not self.refused

    def again(self, key: ObjectKey) -> None:
        """Look at a service anew with the next `apply`, though nothing is known to have changed."""
        self.known.mark(key)

    def start_over(self, error: LbError) -> None:
        """A map refused an update: what is programmed is read back, and all is planned again."""
        self._notes.map_refused(error)
        self.read_back()
        self._retry = time.monotonic() + self._waited()

    def read_back(self) -> None:
        """Take what the maps say for what is programmed; `apply` plans all anew."""
        now = time.monotonic()
        self.planner, leftovers = readback.read(self._tables, now, self._most)
        readback.repair(self.planner, leftovers, self._tables)
        self.grown()
        self.housekeeper.planner = self.planner
        self._places.start_over()
        self._told = -1, -1, -1
        wanted = {
            self.planner.stored_name(name) for names in self._ports.values() for name in names
        }
        self._unclaimed.update(self.planner.services.keys() - wanted)
        self.known.mark_all()
        self.complete_pass = True
