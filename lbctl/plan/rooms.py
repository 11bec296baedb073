"""Who is served when not everybody has room: by a rule that looks at the objects alone, so that
every node of the same sizes, and every start, comes to the same.

Services take their places in order: the older before the younger, then by name; but whoever asks
for more than a quarter of the room comes after all others, those that ask for less of it first
(`rank`). Their ports come in the order of the object. A port is served whole or not at all. One
that does not fit is passed over. Services that are not small leave a part of every map to those
that are, who therefore never wait for them to go.

What works is nearly always older than what is new, and what is older is so on every node: that is
why age decides between services that could all have room. Between these and one that asks for a
great part of everything it does not: such a one may have been small when it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lbctl.datapath.records import ADDRESS_BYTES
from lbctl.datapath.regions import region_of
from lbctl.model.records import ObjectKey
from lbctl.plan.changes import PortState
from lbctl.plan.sets import WantedSets
from lbctl.resolve.ports import FrontendKind, ResolvedPort

# What a service may ask for and still be small: this part of a map.
SMALL_SHARE = 16
# ... and the most of it, as a grade, that age alone decides about: a quarter.
_ORDINARY_GRADE = 2
# Of maps whose entries are free again at once, or as many as the option says: what is left to
# small services.
_KEPT_SHARE = 8
# One port's endpoints are bounded, but not in instances that are tiny.
_LEAST_ENDPOINTS = 16


class Need(NamedTuple):
    """Entries of the maps of these names."""

    services: int  # and names
    frontends: int  # and markers
    slots: int
    backends: int
    source_ranges: int

    def fits(self, limit: Need) -> bool:
        """Whether there is no more of any than `limit` says."""
        return (
            self.services <= limit.services
            and self.frontends <= limit.frontends
            and self.slots <= limit.slots
            and self.backends <= limit.backends
            and self.source_ranges <= limit.source_ranges
        )

    def plus(self, other: Need) -> Need:
        """Both together."""
        return Need(*map(int.__add__, self, other))

    def common(self, other: Need) -> Need:
        """What both have: of each the lesser."""
        return Need(*map(min, self, other))

    def minus(self, other: Need) -> Need:
        """Without what `other` is of it."""
        return Need(*map(int.__sub__, self, other))


NOTHING = Need(0, 0, 0, 0, 0)


def sum_fits(used: Sequence[int], more: Need, limit: Need) -> bool:
    """Whether there is room for `more`. Asked for every port that is written: no loop."""
    services, frontends, slots, backends, source_ranges = used
    return (
        services + more.services <= limit.services
        and frontends + more.frontends <= limit.frontends
        and slots + more.slots <= limit.slots
        and backends + more.backends <= limit.backends
        and source_ranges + more.source_ranges <= limit.source_ranges
    )


def sum_of(needs: Iterable[Need]) -> Need:
    """All of them together."""
    total = [0] * len(NOTHING)
    for need in needs:
        for place, number in enumerate(need):
            total[place] += number
    return Need(*total)


class Room:
    """How much there is, for whom."""

    def __init__(self, all_: Need, name_bytes: int) -> None:
        """`all_` is what the maps hold; `name_bytes` the longest text `names` holds.

        Slots and backends are made twice as many as are served at once, for changes: small
        services may have them all, the others only half, so that they too can change.
        """
        self.all = all_
        self.name_bytes = name_bytes
        kept = {name: (n + 1) // _KEPT_SHARE for name, n in all_._asdict().items()}
        half = {"slots": all_.slots // 2, "backends": all_.backends // 2}
        self.for_large = all_.minus(Need(**kept))._replace(**half)
        # What is free at least after a large one has taken its part of it, changes included.
        self.spare = Need(**kept)._replace(slots=all_.slots // 4, backends=all_.backends // 4)
        self.small = Need(*(n // SMALL_SHARE for n in all_))
        self.endpoints_of_a_port = max(all_.backends // 2, _LEAST_ENDPOINTS)

    def grade(self, need: Need) -> int:
        """0 for a small service; 1, 2 and so on for each time it asks for twice as much."""
        grade, limit = 0, self.small
        while not need.fits(limit):
            if grade > SMALL_SHARE.bit_length() - 1:
                return grade
            grade, limit = grade + 1, Need(*(2 * n for n in limit))
        return grade

    def limit(self, grade: int) -> Need:
        """What all services together may have for one of this grade to be served."""
        return self.for_large if grade else self.all


def rank(grade: int) -> int:
    """0 for services among which age decides; the greater, the later they come."""
    return max(0, grade - _ORDINARY_GRADE)


def need_of(port: ResolvedPort) -> Need:
    """What a port asks for."""
    cluster, local = len(port.cluster), len(port.local)
    both, slots = cluster, cluster
    if local and port.local is not port.cluster:
        both = len({*port.cluster, *port.local})
        if not cluster == local == both:
            slots += local
    marked = len({f.address for f in port.frontends if not f.kind & FrontendKind.NODE_PORT})
    return Need(1, len(port.frontends) + marked, slots, both, len(port.source_ranges))


def need_of_sets(ranges: int, frontends: Sequence[tuple[bytes, int]], wanted: WantedSets) -> Need:
    """The same of one whose sets are known."""
    cluster, local, both = len(wanted.cluster), len(wanted.local), len(wanted.flags)
    slots = cluster if cluster == local == both else cluster + local
    return Need(1, len(frontends) + _marked(frontends), slots, both, ranges)


def need_of_state(state: PortState) -> Need:
    """The same of a port as it is programmed."""
    cluster, local = region_of(state.cluster), region_of(state.local)
    slots = cluster[1] + (0 if local == cluster else local[1])
    frontends = len(state.frontends) + _marked(state.frontends)
    return Need(1, frontends, slots, state.endpoints, len(state.ranges))


def _marked(frontends: Sequence[tuple[bytes, int]]) -> int:
    """How many addresses have a marker of their own. Those of the node, which all node ports share,
    are few."""
    return len({k[:ADDRESS_BYTES] for k, flags in frontends if not flags & FrontendKind.NODE_PORT})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A port that wants to be served. `new` breaks the tie of objects that do not say how old they
    are: what is served already goes first, and of that what has to leave a part to small ones, who
    filled that part later."""

    grade: int
    seniority: bytes
    new: bool
    service: ObjectKey
    index: int
    name: str
    need: Need

    @property
    def order(self) -> tuple[int, bool, bytes, bool, int, ObjectKey, int]:
        undated = not self.seniority
        newcomer = undated and self.new
        smaller = -self.grade if undated and not self.new else 0
        return (
            rank(self.grade), undated, self.seniority, newcomer, smaller, self.service, self.index
        )  # fmt: skip


def admitted(candidates: Iterable[Candidate], before: Need, room: Room) -> set[str]:
    """Names of those that are served, in a room where `before` is taken by others."""
    taken, found = before, set()
    for candidate in sorted(candidates, key=lambda c: c.order):
        together = taken.plus(candidate.need)
        if together.fits(room.limit(candidate.grade)):
            taken = together
            found.add(candidate.name)
    return found
