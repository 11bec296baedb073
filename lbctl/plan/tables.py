"""The tables of services that choose by hash: where each lies in `hash_tables`, what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lbctl import advice
from lbctl.datapath.regions import Contents, region_of, region_word
from lbctl.plan import maglev
from lbctl.plan.alloc import RegionPool
from lbctl.plan.changes import TABLES, Plan, PortState, TablePart


class HashTables:
    """Plans them. A table that keeps its size is changed in place: each of its places leads to a
    member of the old set or the new one at any moment, and nearly all to the same one."""

    def __init__(self, contents: Contents, capacity: int) -> None:
        self._contents = contents
        self.regions = RegionPool("hash_tables", capacity, advice.flag_of("hash_tables"))

    def grow(self, contents: Contents, capacity: int) -> None:
        """The map is another one, of so many places."""
        self._contents = contents
        self.regions.capacity = capacity

    def set(
        self,
        plan: Plan,
        state: PortState,
        kind: str,
        members: Sequence[tuple[bytes, int]],
        weights: Sequence[int],
        now: float,
    ) -> None:
        """The table of one of the service's sets: of these endpoints, identities with ids. Raises
        `Exhausted`, and then there is none."""
        if not any(weights):
            self.drop(plan, state, kind, now)
            return
        size = maglev.size_for(len(members) - weights.count(0))
        recipe = _recipe(size, members, weights)
        if state.made_of.get(kind) == recipe:
            return
        word = getattr(state, TABLES[kind])
        base, length = region_of(word)
        if length != size:
            self.drop(plan, state, kind, now)
            base = self.regions.take(size, now)
            word = region_word(base, size)
        chosen = maglev.table([identity for identity, _ in members], weights, size)
        wanted = np.array([number for _, number in members], np.uint32)[chosen]
        if length == size:
            differing = np.flatnonzero(self._contents.table(word) != wanted)
        else:
            differing = np.arange(size)
            plan.words.append((state.id, TABLES[kind], word))
            setattr(state, TABLES[kind], word)
        if len(differing):
            plan.tables.append(TablePart(base + differing, wanted[differing]))
        state.made_of[kind] = recipe

    def drop(self, plan: Plan, state: PortState, kind: str, now: float) -> None:
        """No table: the choice is one by chance."""
        word = getattr(state, TABLES[kind])
        base, length = region_of(word)
        state.made_of.pop(kind, None)
        if length:
            self.regions.release(base, length, now)
        if word:
            plan.words.append((state.id, TABLES[kind], 0))
            setattr(state, TABLES[kind], 0)

    def adopt(self, used: npt.NDArray[np.int64], top: int, now: float) -> None:
        """What an earlier agent left: see `RegionPool.adopt`."""
        self.regions.adopt(used, top, now)


def _recipe(size: int, members: Sequence[tuple[bytes, int]], weights: Sequence[int]) -> bytes:
    """Tells one table from another, ids included."""
    found = hashlib.blake2b(size.to_bytes(4, "big"), digest_size=16)
    for (identity, number), weight in zip(members, weights, strict=True):
        found.update(identity + number.to_bytes(4, "big") + weight.to_bytes(2, "big"))
    return found.digest()
