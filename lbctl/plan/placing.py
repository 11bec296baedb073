"""Ids for new endpoints, and regions for sets, of one port after the other."""

from __future__ import annotations

from typing import NamedTuple

from lbctl.datapath import consts
from lbctl.datapath.regions import region_word
from lbctl.plan.alloc import Exhausted, IdPool, RegionPool
from lbctl.plan.rooms import Need
from lbctl.plan.sets import HeldSets, WantedSets


class Placed(NamedTuple):
    """A set as it will be programmed: its region word, and the ids in the order of its slots."""

    word: int
    ids: list[int]


class Placement(NamedTuple):
    """Both sets of a port; `fresh` are the ids of new endpoints, `regions` those to be written."""

    fresh: list[int]
    cluster: Placed
    local: Placed
    regions: list[tuple[int, list[int]]]


class Placing:
    """Takes what a port needs from the pools."""

    def __init__(self, backend_ids: IdPool, regions: RegionPool) -> None:
        self._backend_ids = backend_ids
        self._regions = regions

    def place(
        self, wanted: WantedSets, sets: HeldSets, fresh: list[bytes], spare: Need, now: float
    ) -> Placement:
        """Ids for `fresh` endpoints, and where the sets lie. Raises `Exhausted`, with nothing
        taken."""
        fresh_ids = self._backend_ids.take_many(len(fresh))
        ids = dict(zip(fresh, fresh_ids, strict=True))
        cluster = sets.ids_of(wanted.cluster, ids)
        local = sets.ids_of(wanted.local, ids) if wanted.local else []
        existing = [
            Placed(word, held)
            for word, held in zip(sets.words, (sets.cluster, sets.local), strict=True)
            if held
        ]
        regions: list[tuple[int, list[int]]] = []
        try:
            both = self._place(cluster, 0, existing, regions, spare, now, bool(wanted.near))
            existing.append(both)
            here = self._place(local, wanted.empty, existing, regions, spare, now, False)
        except Exhausted:
            self._give_back(fresh_ids, regions)
            raise
        return Placement(
            fresh_ids,
            _closed(both, wanted, wanted.cluster),
            _closed(here, wanted, wanted.local),
            regions,
        )

    def _place(
        self,
        ids: list[int],
        empty: int,
        existing: list[Placed],
        regions: list[tuple[int, list[int]]],
        spare: Need,
        now: float,
        ordered: bool,
    ) -> Placed:
        """A region that holds the set already, or a new one; `empty` for one without endpoints."""
        if not ids:
            return Placed(empty, ids)
        for held in existing:
            if held.ids == ids:
                return held
            if not ordered and len(held.ids) == len(ids) and set(held.ids) == set(ids):
                return held
        if spare.slots:
            self._regions.check(len(ids), spare.slots, now)
        base = self._regions.take(len(ids), now)
        regions.append((base, ids))
        return Placed(region_word(base, len(ids)), ids)

    def _give_back(self, ids: list[int], regions: list[tuple[int, list[int]]]) -> None:
        self._backend_ids.give_back(ids)
        for base, members in regions:
            self._regions.give_back(base, len(members))


def _closed(placed: Placed, wanted: WantedSets, members: list[bytes]) -> Placed:
    """With what its word says of whether anything new may come."""
    says = placed.word & consts.REGION_CLOSED
    if not placed.ids or not (says or wanted.weights):
        return placed
    word = placed.word & ~consts.REGION_CLOSED
    return Placed(word | consts.REGION_CLOSED * wanted.is_closed(members), placed.ids)
