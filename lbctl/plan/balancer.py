"""How a service port's endpoints are chosen, as writes: settings, weights, shares, tables."""

from __future__ import annotations

from collections.abc import Mapping

from lbctl.datapath import clock, consts
from lbctl.datapath.regions import Contents, region_of
from lbctl.datapath.shares import Shape
from lbctl.datapath.ticks import tick_at, ticks
from lbctl.model.records import ALGORITHMS, ObjectKey
from lbctl.plan import maglev, shares
from lbctl.plan.alloc import Exhausted
from lbctl.plan.changes import CLUSTER, LOCAL, Plan, PortState, Settings
from lbctl.plan.placing import Placed, Placement
from lbctl.plan.sets import HeldSets, WantedSets
from lbctl.plan.shares import Warmth
from lbctl.plan.tables import HashTables
from lbctl.resolve.ports import AT_RANDOM, ResolvedPort

# Names of enum algorithm: those of the annotation, in another case.
NUMBERS = {
    "random": consts.ALGORITHM_RANDOM,
    "round-robin": consts.ALGORITHM_ROUND_ROBIN,
    "least-connections": consts.ALGORITHM_LEAST_CONNECTIONS,
    "maglev": consts.ALGORITHM_MAGLEV,
    "source-hash": consts.ALGORITHM_SOURCE_HASH,
}
assert tuple(NUMBERS) == ALGORITHMS

_Weights = dict[int, tuple[int, int]]  # by backend id: weight, and since when it is there


class Balancer:
    """Plans it for one port after the other."""

    def __init__(self, contents: Contents, tables: HashTables) -> None:
        self._contents = contents
        self._tables = tables
        # Ports some of whose endpoints have yet to get their share.
        self.warming: dict[str, PortState] = {}
        self.without_table: dict[str, ObjectKey] = {}  # for want of room
        self.lacking: dict[str, int] = {}  # places that those would take
        self.version = 0  # of `without_table`

    def grow(self, contents: Contents) -> None:
        """The maps are others."""
        self._contents = contents

    def prepare(
        self,
        plan: Plan,
        state: PortState,
        port: ResolvedPort,
        wanted: WantedSets,
        sets: HeldSets,
        placement: Placement,
        fresh: list[bytes],
        now: float,
    ) -> None:
        """What is written before the sets are switched."""
        slow_start, since = min(ticks(port.choice.slow_start), 0xFFFF), 0
        # When all are new, nobody is there to spare them anything.
        if slow_start and any(identity in sets.held for identity in wanted.flags):
            since = max(tick_at(now), 1)
        plan.backend_ids.extend(placement.fresh)
        plan.backend_identities.extend(fresh)
        plan.backend_flags.extend([wanted.flags[identity] for identity in fresh])
        plan.backend_services.extend([state.id] * len(fresh))
        plan.backend_weights.extend(wanted.weights_of(fresh))
        plan.backend_since.extend([since] * len(fresh))
        if wanted.shaped or state.shaped or slow_start:
            weights = self._weigh(plan, wanted, sets)
            weights |= {
                number: (wanted.weight(identity), since)
                for number, identity in zip(placement.fresh, fresh, strict=True)
            }
            warmth, new = Warmth(slow_start, tick_at(now)), {base for base, _ in placement.regions}
            self._shape(plan, state, placement, weights, wanted.near, warmth, new)
            warming = shares.is_warming([began for _, began in weights.values()], warmth)
            state.shaped = wanted.shaped or warming
            self._note_warming(state, warming)
        elif self.warming:
            self._note_warming(state, False)
        if not port.choice.by_hash:
            self._drop_tables(plan, state, now)
            return
        self._set_tables(
            plan, state, port, wanted, sets, dict(zip(fresh, placement.fresh, strict=True)), now
        )

    def configure(
        self, plan: Plan, state: PortState, port: ResolvedPort, wanted: WantedSets, new: bool
    ) -> None:
        """What the service's record says besides."""
        settings = _settings(state, port, wanted)
        if settings != state.settings:
            state.settings = settings
            (plan.new_settings if new else plan.settings).append((state.id, settings))

    def remove(self, plan: Plan, state: PortState, name: str, now: float) -> None:
        """The port is gone."""
        self._drop_tables(plan, state, now)
        self.warming.pop(name, None)

    def warm(self, plan: Plan, now: float) -> None:
        """Shares of new endpoints as they are by now: at most a store per slot of their sets."""
        tick = tick_at(now)
        for name, state in list(self.warming.items()):
            warmth = Warmth(state.settings.slow_start, tick)
            cluster = Placed(state.cluster, self._contents.region(state.cluster))
            local = Placed(state.local, self._contents.region(state.local))
            ids = list(dict.fromkeys(cluster.ids + local.ids))
            weights = dict(zip(ids, self._contents.weights(ids), strict=True))
            placement = Placement([], cluster, local, [])
            self._shape(plan, state, placement, weights, state.settings.near, warmth, set())
            if not shares.is_warming([began for _, began in weights.values()], warmth):
                del self.warming[name]

    def _weigh(self, plan: Plan, wanted: WantedSets, sets: HeldSets) -> _Weights:
        """Weights of the endpoints that stay, by id, as they are to be."""
        staying = [(i, n) for i, (n, _) in sets.held.items() if i in wanted.flags]
        found = self._contents.weights([number for _, number in staying])
        weights = {}
        for (identity, number), (weight, since) in zip(staying, found, strict=True):
            weights[number] = (wanted.weight(identity), since)
            if weight != wanted.weight(identity):
                plan.reweighted.append((number, wanted.weight(identity)))
        return weights

    def _shape(
        self,
        plan: Plan,
        state: PortState,
        placement: Placement,
        weights: Mapping[int, tuple[int, int]],
        near: int,
        warmth: Warmth,
        new: set[int],
    ) -> None:
        """Slots of both sets that are to stand for others than they do. Regions that are `new`
        stand for nothing else yet."""
        done = set()
        for placed, first in ((placement.cluster, near), (placement.local, 0)):
            base, length = region_of(placed.word)
            if not length or base in done:
                continue
            done.add(base)
            found = [weights[number] for number in placed.ids]
            worth = shares.effective([w for w, _ in found], [s for _, s in found], warmth)
            shape = shares.shape(worth, first)
            before = Shape.plain(length) if base in new else self._contents.shape(placed.word)
            if not shape.same_as(before):
                plan.shapes.append((base, shape))

    def _note_warming(self, state: PortState, warming: bool) -> None:
        if warming:
            self.warming[state.name] = state
        else:
            self.warming.pop(state.name, None)

    def _set_tables(
        self,
        plan: Plan,
        state: PortState,
        port: ResolvedPort,
        wanted: WantedSets,
        sets: HeldSets,
        fresh: Mapping[bytes, int],
        now: float,
    ) -> None:
        """A table for each set that may be chosen from by hash."""
        lacking = 0
        here = port.internal_local or port.external_local
        for kind, members in ((CLUSTER, wanted.cluster), (LOCAL, wanted.local if here else [])):
            if not members:
                self._tables.drop(plan, state, kind, now)
                continue
            pairs = [(i, fresh[i] if i in fresh else sets.held[i][0]) for i in sorted(members)]
            weights = [wanted.weight(identity) for identity, _ in pairs]
            try:
                self._tables.set(plan, state, kind, pairs, weights, now)
            except Exhausted:
                lacking += maglev.size_for(len(weights) - weights.count(0))
        self._note_without(state.name, port.service if lacking else None, lacking)

    def _drop_tables(self, plan: Plan, state: PortState, now: float) -> None:
        if state.cluster_table or state.local_table:
            for kind in (CLUSTER, LOCAL):
                self._tables.drop(plan, state, kind, now)
        if self.without_table:
            self._note_without(state.name, None)

    def _note_without(self, name: str, service: ObjectKey | None, lacking: int = 0) -> None:
        if lacking:
            self.lacking[name] = lacking
        else:
            self.lacking.pop(name, None)
        if self.without_table.get(name) == service:
            return
        self.version += 1
        if service:
            self.without_table[name] = service
        else:
            del self.without_table[name]


def _settings(state: PortState, port: ResolvedPort, wanted: WantedSets) -> Settings:
    closed = (state.cluster | state.local) & consts.REGION_CLOSED
    if port.choice is AT_RANDOM and not (port.affinity_seconds or wanted.near or closed):
        return _PLAIN[port.internal_local, port.external_local]
    choice, affinity = port.choice, clock.beats(port.affinity_seconds)
    number = NUMBERS[choice.algorithm]
    flags = (
        _locals(port.internal_local, port.external_local)
        | consts.SERVICE_AFFINITY * (port.affinity_seconds > 0)
        | consts.SERVICE_CHOOSES * bool(number or wanted.near or closed)
        | consts.SERVICE_PICKS_UP
        * (number == consts.ALGORITHM_MAGLEV and bool(state.cluster_table))
        | consts.SERVICE_DSR * choice.dsr
    )
    return Settings(
        flags,
        affinity,
        number,
        min(ticks(choice.slow_start), 0xFFFF),
        wanted.near,
        round(choice.spill_over * consts.SPILL_UNIT) if wanted.near else 0,
        0 if choice.flows_leave is None else ticks(choice.flows_leave) + 1,
    )


def _locals(internal: bool, external: bool) -> int:
    return consts.SERVICE_INTERNAL_LOCAL * internal | consts.SERVICE_EXTERNAL_LOCAL * external


# Of ports whose services ask for nothing special, which share them.
_PLAIN = {
    (internal, external): Settings(_locals(internal, external))
    for internal in (False, True)
    for external in (False, True)
}
