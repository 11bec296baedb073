"""From resolved service ports to the writes that make the maps say the same.

The planner knows what is programmed (lbctl/program/readback.py fills it at start) and takes every
plan as carried out; if carrying one out fails, read back and plan again.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt

from lbctl import advice
from lbctl.addresses import Prefix
from lbctl.datapath import consts
from lbctl.datapath.regions import Contents, region_of
from lbctl.datapath.ticks import tick_at
from lbctl.model.names import shortened
from lbctl.model.records import ObjectKey
from lbctl.plan import maglev
from lbctl.plan.alloc import Exhausted, IdPool, RegionPool
from lbctl.plan.balancer import Balancer
from lbctl.plan.changes import CLUSTER, LOCAL, Freed, Plan, PortState, age_of
from lbctl.plan.claims import Claims
from lbctl.plan.placing import Placing
from lbctl.plan.rooms import NOTHING, Need, Room, need_of_sets, need_of_state, sum_fits
from lbctl.plan.sets import HeldSets, WantedSets, frontends_of
from lbctl.plan.tables import HashTables
from lbctl.plan.unchanged import is_programmed
from lbctl.resolve.ports import ResolvedPort

_AT_ONCE = 1000  # ports whose sets are read together


class Planner:
    """Keeps ids, regions and frontends of all service ports, and plans their changes."""

    def __init__(self, contents: Contents, room: Room, table_places: int) -> None:
        """`room` is what the maps may hold in the end, see `grow`; `table_places` are those of
        `hash_tables`."""
        self._contents = contents
        self.room = room
        self.now = room.all  # what they hold
        self._spare = room.spare
        self.services: dict[str, PortState] = {}
        self.retired: dict[str, PortState] = {}  # gone, but flows may still have the id
        self._states: list[PortState | None] = [None] * (room.all.services + 1)  # by id
        # Not a method: a circle would keep the maps open until the garbage is collected.
        self.claims = Claims(partial(age_of, self._states))
        # Ids count from 1, so that one place is never used.
        self.service_ids = IdPool("services", room.all.services + 1, advice.flag_of("services"))
        self.backend_ids = IdPool("backends", room.all.backends + 1, advice.flag_of("backends"))
        self.regions = RegionPool("slots", room.all.slots, advice.flag_of("slots"))
        self.tables = HashTables(contents, table_places)
        self._placing = Placing(self.backend_ids, self.regions)
        self._balancer = Balancer(contents, self.tables)
        self._used = list(NOTHING)  # what the ports ask for that are served
        self._adding: set[bytes] = set()  # frontends of the plan in the making
        self.range_entries = 0

    def grow(self, now: Need, contents: Contents, table_places: int) -> None:
        """The maps hold this from now on, which may be less than they will."""
        self.now, self._contents = now, contents
        self.tables.grow(contents, table_places)
        self._balancer.grow(contents)
        self._spare = Room(now, self.room.name_bytes).spare
        self.service_ids.capacity = now.services + 1
        self.backend_ids.capacity = now.backends + 1
        self.regions.capacity = now.slots

    def grows(self, error: Exhausted) -> bool:
        """Whether the map will hold more than it does, and that helps."""
        now: int = getattr(self.now, error.map_name)
        most: int = getattr(self.room.all, error.map_name)
        return not error.for_good and now < most

    def stored_name(self, name: str) -> str:
        """The text that stands for a service port in `names`, and by which it is known here."""
        return shortened(name, self.room.name_bytes)

    def adopt(self, name: str, number: int) -> PortState:
        """A port that is programmed already, with its id."""
        state = self.services[name] = self._states[number] = PortState(number, name=name)
        return state

    @property
    def used(self) -> Need:
        """What the ports ask for together that are served, and whose objects are known."""
        return Need(*self._used)

    def plan(
        self,
        changes: Mapping[str, ResolvedPort | None],
        now: float,
        large: Container[ObjectKey] = (),
    ) -> Plan:
        """The writes for `changes`: name and what it resolves to, None for a port that is gone.

        A port for which there is no room is in `Plan.failed`, and stays as it was. Those of
        services in `large` leave to others what is kept for them.
        """
        plan = Plan()
        self._adding.clear()
        moved: list[tuple[PortState, tuple[tuple[bytes, int], ...]]] = []
        # What is served has its room before anything new is given any.
        aged = self._recognise(changes)
        for full_name, name, before, sets in self._programmed(changes):
            port, asked = changes[full_name], before.frontends if before else ()
            if port is None:
                if before:
                    self._remove(plan, before, sets, now)
                    moved.append((before, asked))
                continue
            try:
                after = self._set(plan, name, port, before, sets, now, port.service in large)
            except Exhausted as error:
                plan.failed[full_name] = error
                continue
            if after.frontends != asked:
                moved.append((after, asked))
        self._move_frontends(plan, moved, aged)
        self.range_entries -= len(plan.ranges_gone)
        return plan

    def warm(self, now: float) -> Plan:
        """The writes that give new endpoints the shares they have by now."""
        plan = Plan()
        self._balancer.warm(plan, now)
        return plan

    @property
    def warming(self) -> dict[str, PortState]:
        """Ports some of whose endpoints have yet to get their whole share."""
        return self._balancer.warming

    @property
    def without_table(self) -> dict[str, ObjectKey]:
        """Ports that were to choose by hash and choose by chance, for want of room: their
        services."""
        return self._balancer.without_table

    @property
    def table_places(self) -> int:
        """Places of tables that are taken, or asked for in vain."""
        return self.tables.regions.taken + sum(self._balancer.lacking.values())

    def due_tables(self) -> list[ObjectKey]:
        """Services without their tables, as many as may have room for one now."""
        free = self.tables.regions.capacity - self.tables.regions.taken
        return [*islice(dict.fromkeys(self.without_table.values()), free // maglev.LEAST)]

    @property
    def version(self) -> tuple[int, int]:
        """Changes when there is something else to say of all ports together."""
        return self.claims.version, self._balancer.version

    def contested(self) -> Iterator[tuple[bytes, PortState, list[PortState]]]:
        """Frontends that more than one asks for: who has it, and who waits."""
        for key, owner, waiting in self.claims.contested():
            has = self._states[owner]
            if has is not None:
                yield key, has, [s for number in waiting if (s := self._states[number])]

    def recover(
        self,
        sweep_began: float,
        services_seen: npt.NDArray[np.bool_],
        backends_seen: npt.NDArray[np.bool_],
    ) -> Freed:
        """Ids whose rest is over: see `IdPool.recover`."""
        services = self.service_ids.recover(sweep_began, services_seen)
        gone = set(services)
        if gone:
            self.retired = {n: p for n, p in self.retired.items() if p.id not in gone}
        return Freed(services, self.backend_ids.recover(sweep_began, backends_seen))

    def _programmed(
        self, names: Iterable[str]
    ) -> Iterator[tuple[str, str, PortState | None, HeldSets]]:
        """By full name the stored one of each port, what there is of it, and its sets, which are
        read many at once: a start looks at all of them."""
        left = iter(names)
        while some := list(islice(left, _AT_ONCE)):
            stored = [self.stored_name(name) for name in some]
            states = [self.services.get(name) for name in stored]
            words = [(state.cluster, state.local) if state else (0, 0) for state in states]
            yield from zip(some, stored, states, HeldSets.read(self._contents, words), strict=True)

    def _recognise(self, changes: Mapping[str, ResolvedPort | None]) -> list[PortState]:
        """Take down who the programmed ports are; returns those whose age is another now. An object
        that was made anew is younger than it was."""
        aged: list[PortState] = []
        if not self.services:
            return aged
        for full_name, port in changes.items():
            state = self.services.get(self.stored_name(full_name)) if port else None
            if state is None or port is None:
                continue
            if state.service is None:
                state.service = port.service
                self._count(NOTHING, need_of_state(state))
            elif state.seniority == port.seniority:
                continue
            state.seniority = port.seniority
            aged.append(state)
        return aged

    def _count(self, before: Need, after: Need) -> None:
        self._used = [u + a - b for u, a, b in zip(self._used, after, before, strict=True)]

    def _set(
        self,
        plan: Plan,
        name: str,
        port: ResolvedPort,
        before: PortState | None,
        sets: HeldSets,
        now: float,
        large: bool,
    ) -> PortState:
        frontends, wanted = frontends_of(port), WantedSets(port)
        if before and is_programmed(before, port, frontends, wanted, sets):
            self._balancer.configure(plan, before, port, wanted, new=False)
            return before
        returning = None if before else self.retired.get(name)
        state = before or returning or PortState(0)
        held = sets.held
        fresh = [i for i in wanted.flags if i not in held] if held else list(wanted.flags)
        need_before = need_of_state(state) if before else NOTHING
        need = need_of_sets(len(port.source_ranges), frontends, wanted)
        self._check_share(need, need_before, self.room.for_large if large else self.room.all)
        spare = self._spare if large else NOTHING
        adding = self._check_room(state, len(fresh), frontends, port.source_ranges, spare)
        placement = self._placing.place(wanted, sets, fresh, spare, now)
        if not state.id:
            state.id = self.service_ids.take()
            plan.names.append((state.id, name))
        elif returning:
            self.service_ids.reclaim(state.id)
            del self.retired[name]
        self._adding |= adding
        self.services[name] = self._states[state.id] = state
        state.name, state.service, state.seniority = name, port.service, port.seniority
        state.endpoints = len(wanted.flags)

        self._balancer.prepare(plan, state, port, wanted, sets, placement, fresh, now)
        for base, ids in placement.regions:
            plan.slot_indices.extend(range(base, base + len(ids)))
            plan.slot_backends.extend(ids)
        self._change_flags(plan, sets, wanted.flags, state, now)
        self._switch(plan, state, (placement.cluster.word, placement.local.word), now)
        self._balancer.configure(plan, state, port, wanted, new=before is None)
        self._set_ranges(plan, state, port.source_ranges)
        state.frontends = frontends
        self._count(need_before, need)
        return state

    def _check_share(self, wanted: Need, before: Need, limit: Need) -> None:
        """Raises `Exhausted` if a port would get more of a map than all may have together, as they
        are counted: addresses that two ask for twice."""
        if sum_fits(self._used, wanted, limit):
            return
        for field, more, had, used, most in zip(
            Need._fields, wanted, before, self._used, limit, strict=True
        ):
            if more > had and used + more - had > most:
                raise Exhausted(field, most, 0, advice.flag_of(field), for_good=True)

    def _check_room(
        self,
        state: PortState,
        fresh: int,
        frontends: tuple[tuple[bytes, int], ...],
        ranges: tuple[Prefix, ...],
        spare: Need,
    ) -> set[bytes]:
        """Keys that the frontends add to the map. Raises `Exhausted`, with nothing taken, unless
        every map has the entries that are written before others are deleted, and `spare`."""
        limit = self.now
        adding: set[bytes] = set()
        if frontends != state.frontends:
            adding = self.claims.missing(frontends)
            if self._adding:
                adding -= self._adding
            entries = self.claims.entries + len(self._adding) + len(adding)
            if adding and entries + spare.frontends > limit.frontends:
                raise Exhausted("frontends", limit.frontends, 0, advice.flag_of("frontends"))
        if ranges != state.ranges:
            more = len(set(ranges) - set(state.ranges))
            if more and self.range_entries + more + spare.source_ranges > limit.source_ranges:
                flag = advice.flag_of("source_ranges")
                raise Exhausted("source_ranges", limit.source_ranges, 0, flag)
        self.backend_ids.check(fresh, spare.backends)
        if not state.id:
            self.service_ids.check(1, spare.services)
        return adding

    def _change_flags(
        self,
        plan: Plan,
        sets: HeldSets,
        wanted: dict[bytes, int],
        state: PortState,
        now: float,
    ) -> None:
        """A backend that stays gets bits before the switch and loses them after it."""
        for identity, (number, flags) in sets.held.items():
            target = wanted.get(identity)
            if target is None:
                self._retire(plan, number, flags, state, now)
                continue
            if flags | target != flags:
                plan.raised.append((number, flags | target))
            if flags | target != target:
                plan.lowered.append((number, target))

    def _retire(self, plan: Plan, number: int, flags: int, state: PortState, now: float) -> None:
        ending = state.settings.flows_leave
        if ending:
            plan.ending.append((number, tick_at(now) + ending - 1))
        left = flags & consts.BACKEND_LOCAL | (consts.BACKEND_ENDING if ending else 0)
        plan.lowered.append((number, left))
        self.backend_ids.release(number, now)

    def _switch(self, plan: Plan, state: PortState, words: tuple[int, int], now: float) -> None:
        cluster, local = words
        old = state.cluster, state.local
        if cluster != state.cluster:
            plan.words.append((state.id, CLUSTER, cluster))
        if local != state.local:
            plan.words.append((state.id, LOCAL, local))
        state.cluster, state.local = cluster, local
        if any(old):
            left = {*map(region_of, old)} - {region_of(cluster), region_of(local)}
            self._release_regions(left, now)

    def _release_regions(self, regions: Iterable[tuple[int, int]], now: float) -> None:
        for base, length in sorted(regions):
            if length:
                self.regions.release(base, length, now)

    def _set_ranges(self, plan: Plan, state: PortState, wanted: tuple[Prefix, ...]) -> None:
        """New ranges come before the frontends that ask for them, old ones go after."""
        if wanted != state.ranges:
            had, want = set(state.ranges), set(wanted)
            more = [(state.id, r) for r in wanted if r not in had]
            plan.ranges.extend(more)
            self.range_entries += len(more)
            plan.ranges_gone.extend((state.id, r) for r in state.ranges if r not in want)
            state.ranges = wanted

    def _remove(self, plan: Plan, state: PortState, sets: HeldSets, now: float) -> None:
        name = state.name
        if state.service is not None:
            self._count(need_of_state(state), NOTHING)
        for number, flags in sets.held.values():
            self._retire(plan, number, flags, state, now)
        if state.cluster:
            plan.words_emptied.append((state.id, CLUSTER, 0))
        if state.local:
            plan.words_emptied.append((state.id, LOCAL, 0))
        self._release_regions({region_of(state.cluster), region_of(state.local)}, now)
        state.cluster = state.local = 0
        self._balancer.remove(plan, state, name, now)
        state.frontends = ()
        self._set_ranges(plan, state, ())
        del self.services[name]
        self.retired[name] = state
        self.service_ids.release(state.id, now)

    def _move_frontends(
        self,
        plan: Plan,
        moved: list[tuple[PortState, tuple[tuple[bytes, int], ...]]],
        aged: list[PortState],
    ) -> None:
        """First all that is given up, then all that is asked for: an address can change hands."""
        for state, asked in moved:
            if not asked:
                continue
            now = dict(state.frontends)
            self.claims.drop(state.id, [(k, f) for k, f in asked if k not in now])
            for key, flags in asked:
                if now.get(key, flags) != flags:
                    self.claims.change(state.id, key, flags, now[key])
        for state, asked in moved:
            had = dict(asked)
            more = [(k, f) for k, f in state.frontends if k not in had] if had else state.frontends
            self.claims.add(state.id, more)
        for state in aged:
            self.claims.aged(state.frontends)
        for key, owner_now in self.claims.changes():
            if owner_now is None:
                plan.frontends_gone.append(key)
            else:
                service, flags = self.claims.unpack(owner_now)
                plan.frontends.append((key, service, flags))
