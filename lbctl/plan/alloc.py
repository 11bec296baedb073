"""Places in the maps' arrays: who may have which id or region, and when it may be used again.

Nothing here looks at the kernel. Times are seconds of one monotonic clock, given by the caller, so
that every run of the same calls gives the same places.
"""

import heapq
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ebpf.errors import LbError

# Longer than any packet can take from reading a region word to reading the slot and the backend.
GRACE_SECONDS = 2.0


class Exhausted(LbError):
    """A map has no free place for this; `resting` places will come back by themselves. `for_good`:
    a larger map would have none either."""

    def __init__(
        self, map_name: str, capacity: int, resting: int, flag: str, *, for_good: bool = False
    ) -> None:
        self.for_good = for_good
        self.map_name = map_name
        self.resting = resting
        self.capacity = capacity
        self.flag = flag
        soon = f" ({resting:,} of them resting before reuse)" if resting else ""
        super().__init__(
            f"map {map_name} is full: all {capacity:,} entries are in use{soon}",
            hint=f"start the agent with a larger {flag}",
        )


class IdPool:
    """Dense ids of one array map, the lowest free one first. 0 is never given out: it means none.

    A released id rests: until `grace` seconds are over, and until a sweep that began after that
    saw no flow with it.
    """

    __slots__ = ("_flag", "_free", "_grace", "_map_name", "_next", "_resting", "capacity")

    def __init__(
        self, map_name: str, capacity: int, flag: str, grace: float = GRACE_SECONDS
    ) -> None:
        self._map_name = map_name
        self._flag = flag
        self._grace = grace
        self._next = 1
        self._free: list[int] = []
        self._resting: dict[int, float] = {}
        self.capacity = capacity

    @property
    def resting(self) -> int:
        """Ids that were released and are not yet free."""
        return len(self._resting)

    @property
    def taken(self) -> int:
        """Ids that are not free."""
        return self._next - 1 - len(self._free)

    @property
    def in_use(self) -> int:
        """Ids that are held by someone."""
        return self._next - 1 - len(self._free) - len(self._resting)

    def adopt(
        self, used: npt.NDArray[np.int64], resting: npt.NDArray[np.int64], now: float
    ) -> None:
        """Start from what an earlier agent left: ids `used`, and others that must rest from `now`.

        Both are arrays of distinct ids; what is in neither is free.
        """
        known = np.concatenate([used, resting]).astype(np.int64)
        self._next = int(known.max(initial=0)) + 1
        free = np.ones(self._next, dtype=bool)
        free[known] = False
        free[0] = False
        self._free = np.flatnonzero(free).tolist()
        self._resting = dict.fromkeys(sorted(resting.tolist()), now)

    def take(self) -> int:
        """The lowest free id. Raises `Exhausted`."""
        if self._free:
            return heapq.heappop(self._free)
        if self._next >= self.capacity:
            raise Exhausted(self._map_name, self.capacity, len(self._resting), self._flag)
        self._next += 1
        return self._next - 1

    def check(self, count: int, spare: int = 0) -> None:
        """Raises `Exhausted` unless `count` ids are free and `spare` besides."""
        if count and count + spare > len(self._free) + self.capacity - self._next:
            raise Exhausted(self._map_name, self.capacity, len(self._resting), self._flag)

    def take_many(self, count: int) -> list[int]:
        """`count` ids, or none of them: raises `Exhausted`."""
        self.check(count)
        reused = min(count, len(self._free))
        ids = [heapq.heappop(self._free) for _ in range(reused)]
        fresh = count - reused
        ids.extend(range(self._next, self._next + fresh))
        self._next += fresh
        return ids

    def give_back(self, ids: Iterable[int]) -> None:
        """Ids that were taken and never written anywhere: free at once."""
        for number in ids:
            heapq.heappush(self._free, number)

    def release(self, number: int, now: float) -> None:
        """The id is no longer used; it rests from `now`, which never goes backwards."""
        self._resting[number] = now

    def reclaim(self, number: int) -> None:
        """A resting id returns to the one who had it."""
        del self._resting[number]

    def recover(self, sweep_began: float, referenced: npt.NDArray[np.bool_]) -> list[int]:
        """Free what rested a grace period before `sweep_began` and is not `referenced`.

        `referenced[id]` says whether that sweep saw a flow with the id; ids beyond its end had
        none. Returns the freed ids in ascending order.
        """
        candidates = []
        for number, released in self._resting.items():
            if released + self._grace > sweep_began:
                break  # in order of release: all later ones are younger
            candidates.append(number)
        seen = len(referenced)
        freed = sorted(n for n in candidates if n >= seen or not referenced[n])
        for number in freed:
            del self._resting[number]
            heapq.heappush(self._free, number)
        return freed


class RegionPool:
    """Stretches of the `slots` array, best fit, neighbours merged; a freed one rests `grace`."""

    __slots__ = (
        "_by_end",
        "_by_length",
        "_by_start",
        "_flag",
        "_free_slots",
        "_grace",
        "_lengths",
        "_map_name",
        "_resting",
        "_resting_slots",
        "_top",
        "capacity",
    )

    def __init__(
        self, map_name: str, capacity: int, flag: str, grace: float = GRACE_SECONDS
    ) -> None:
        self._map_name = map_name
        self._flag = flag
        self._grace = grace
        self.capacity = capacity
        self._top = 0  # from here on nothing was ever used
        self._by_start: dict[int, int] = {}  # free blocks below _top: start -> length
        self._by_end: dict[int, int] = {}  # the same: end -> start
        self._by_length: dict[int, dict[int, None]] = {}  # the same: length -> starts
        self._lengths: list[int] = []  # keys of _by_length, sorted
        self._resting: deque[tuple[float, int, int]] = deque()
        self._resting_slots = 0
        self._free_slots = 0  # below _top

    @property
    def resting(self) -> int:
        """Slots of freed regions that rest."""
        return self._resting_slots

    @property
    def taken(self) -> int:
        """Slots that are not free."""
        return self._top - self._free_slots

    @property
    def in_use(self) -> int:
        """Slots of regions that are held."""
        return self._top - self._free_slots - self._resting_slots

    def adopt(self, used: npt.NDArray[np.int64], top: int, now: float) -> None:
        """Start from what an earlier agent left.

        `used` is an (n, 2) array of base and length of disjoint regions, `top` the end of all that
        was ever written. The gaps below `top` may have been in use a moment ago: they rest.
        """
        self._top = top
        end = 0
        for base, length in used[np.argsort(used[:, 0])].tolist():
            if base > end:
                self.release(end, base - end, now)
            end = base + length
        if top > end:
            self.release(end, top - end, now)

    def check(self, length: int, spare: int, now: float) -> None:
        """Raises `Exhausted` if a region of `length` would leave fewer than `spare` slots free."""
        self._settle(now)
        if length + spare > self._free_slots + self.capacity - self._top:
            raise Exhausted(self._map_name, self.capacity, self._resting_slots, self._flag)

    def take(self, length: int, now: float) -> int:
        """Base of a free region of `length` slots (at least 1). Raises `Exhausted`."""
        self._settle(now)
        at = bisect_left(self._lengths, length)
        if at < len(self._lengths):
            have = self._lengths[at]
            base = next(reversed(self._by_length[have]))  # the newest: O(1), and warm in cache
            self._remove(base, have)
            if have > length:
                self._insert(base + length, have - length)
            return base
        if self._top + length > self.capacity:
            raise Exhausted(self._map_name, self.capacity, self._resting_slots, self._flag)
        self._top += length
        return self._top - length

    def give_back(self, base: int, length: int) -> None:
        """A region that was taken and never pointed to: free at once."""
        self._merge(base, length)

    def release(self, base: int, length: int, now: float) -> None:
        """The region is no longer pointed to; it rests from `now`, which never goes backwards."""
        self._resting.append((now, base, length))
        self._resting_slots += length

    def _settle(self, now: float) -> None:
        while self._resting and self._resting[0][0] + self._grace <= now:
            _, base, length = self._resting.popleft()
            self._resting_slots -= length
            self._merge(base, length)

    def _merge(self, base: int, length: int) -> None:
        before = self._by_end.get(base)
        if before is not None:
            self._remove(before, base - before)
            base, length = before, length + base - before
        after = self._by_start.get(base + length)
        if after is not None:
            self._remove(base + length, after)
            length += after
        if base + length == self._top:
            self._top = base
        else:
            self._insert(base, length)

    def _insert(self, base: int, length: int) -> None:
        self._free_slots += length
        self._by_start[base] = length
        self._by_end[base + length] = base
        starts = self._by_length.get(length)
        if starts is None:
            starts = self._by_length[length] = {}
            insort(self._lengths, length)
        starts[base] = None

    def _remove(self, base: int, length: int) -> None:
        self._free_slots -= length
        del self._by_start[base]
        del self._by_end[base + length]
        starts = self._by_length[length]
        del starts[base]
        if not starts:
            del self._by_length[length]
            self._lengths.pop(bisect_left(self._lengths, length))
