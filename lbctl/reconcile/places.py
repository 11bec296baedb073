"""Ports that wait for room, and who is to be served while there is not enough for all."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from lbctl import advice
from lbctl.model.names import PortName
from lbctl.model.records import ObjectKey, Protocol
from lbctl.plan.alloc import Exhausted
from lbctl.plan.planner import Planner
from lbctl.plan.rooms import (
    NOTHING,
    Candidate,
    Need,
    admitted,
    need_of,
    need_of_state,
    rank,
    sum_of,
)
from lbctl.resolve.ports import ResolvedPort, Target

NO_ROOM = "has no room"  # how the sentence about such a service goes on
_WORDS = {
    "services": "service ports",
    "frontends": "addresses",
    "slots": "places in endpoint sets",
    "backends": "endpoints",
    "source_ranges": "source ranges",
}
# Of a service of more, the sum of its needs is kept, and not made anew for every change.
_FEW_PORTS = 16


@dataclass(frozen=True, slots=True)
class Waiting:
    """A port that is not served as it should be, for want of room."""

    service: ObjectKey
    need: Need
    error: Exhausted


@dataclass(frozen=True, slots=True)
class Choice:
    """Names of ports to take out of the maps, with their services, and to put in."""

    out: dict[str, ObjectKey]
    into: list[str]


class Places:
    """While there is room for all, all this knows is who asks for much; see `choose`."""

    def __init__(self) -> None:
        self.waiting: dict[str, Waiting] = {}  # by full name of the port
        self.grades: dict[ObjectKey, int] = {}  # of services that are not small
        self.changed = False  # since `choose`: in a way that may change who is to be served
        self.version = 0  # grows with every change of `waiting`
        self._judged = 0  # grows with every service that is looked at
        self._chosen_at = 0  # what that was at `choose`
        self._totals: dict[ObjectKey, Need] = {}  # what services of many ports ask for

    @property
    def last(self) -> dict[ObjectKey, int]:
        """Grades of the services that come after those among which age decides. These alone must
        leave a part when they are written after `choose`: for the others the rule has counted
        what was there before them, and what came later may have filled that part."""
        return {key: grade for key, grade in self.grades.items() if rank(grade)}

    def judge(
        self, planner: Planner, key: ObjectKey, names: Sequence[str], ports: Sequence[ResolvedPort]
    ) -> None:
        """How much a service asks for, of whose ports (`names`) these were resolved anew. Before
        they are planned."""
        self._judged += 1
        if not names:
            self.grades.pop(key, None)
            self._totals.pop(key, None)
            return
        room = planner.room
        whole = len(ports) == len(names)
        if len(ports) == 1 == len(names) and _is_small(ports[0], room.small):
            if self.grades and self.grades.pop(key, 0):
                self.changed |= bool(self.waiting)
            return
        grade = 0
        if not whole or not _bound(ports).fits(room.small):
            total = self._total(planner, key, names, ports, whole)
            grade = room.grade(total)
        elif key in self._totals:
            del self._totals[key]
        if grade != self.grades.pop(key, 0):
            self.changed |= bool(self.waiting)
        if grade:
            self.grades[key] = grade

    def _total(
        self,
        planner: Planner,
        key: ObjectKey,
        names: Sequence[str],
        ports: Sequence[ResolvedPort],
        whole: bool,
    ) -> Need:
        total = self._totals.get(key)
        if whole:
            total = NOTHING
        elif total is None:
            needs = (self.need(planner, name) for name in names)
            total = sum_of(need for need in needs if need)
        if not whole:
            before = (self.need(planner, port.name) for port in ports)
            total = total.minus(sum_of(need for need in before if need))
        total = total.plus(sum_of(map(need_of, ports)))
        if len(names) > _FEW_PORTS:
            self._totals[key] = total
        return total

    def queued(
        self, planner: Planner, changes: Mapping[str, ResolvedPort | None]
    ) -> dict[str, Exhausted]:
        """New ports that must not push in before others like them that wait: `choose` says whose
        turn it is."""
        found = {}
        for name, port in changes.items() if self.waiting else ():
            if port and planner.stored_name(name) not in planner.services:
                why = self._full(port.service)
                if why:
                    found[name] = why
        return found

    def _full(self, service: ObjectKey) -> Exhausted | None:
        """Why a small service that is new must queue: others like it wait already."""
        if service in self.grades:
            return None
        small = (w.error for w in self.waiting.values() if w.service not in self.grades)
        return next(small, None)

    def wait(self, name: str, port: ResolvedPort, error: Exhausted) -> None:
        """A port was not written."""
        before = self.waiting.get(name)
        self.waiting[name] = Waiting(port.service, need_of(port), error)
        if before is None or before.need != self.waiting[name].need:
            self.changed = True
            self.version += 1

    def served(self, names: Iterable[str]) -> None:
        """Ports were written, or are gone."""
        for name in names if self.waiting else ():
            if self.waiting.pop(name, None):
                self.version += 1

    def leave(self, planner: Planner, leaving: Mapping[str, ObjectKey]) -> dict[str, Waiting]:
        """What is to be put in `waiting` for ports that will be taken out of the maps."""
        asked = planner.used.plus(sum_of(w.need for w in self.waiting.values()))
        found = {}
        for name, key in leaving.items():
            limit = planner.room.limit(self.grades.get(key, 0))
            shares = [n / max(most, 1) for n, most in zip(asked, limit, strict=True)]
            place = shares.index(max(shares))
            field = Need._fields[place]
            error = Exhausted(field, limit[place], 0, advice.flag_of(field), for_good=True)
            waiting = Waiting(key, _served(planner, name), error)
            found[name] = self.waiting.get(name, waiting)
        self.version += 1
        return found

    def start_over(self) -> None:
        """All is planned anew."""
        self.waiting.clear()
        self._totals.clear()
        self.version += 1

    def unsettled(self, planner: Planner) -> bool:
        """Whether `choose` may find others than are served now."""
        if self.changed:
            return True
        used, room = planner.used, planner.room
        if self.grades and self._judged != self._chosen_at and not used.fits(room.for_large):
            return True
        return any(
            used.plus(waiting.need)
            .minus(_served(planner, name))
            .fits(room.limit(self.grades.get(waiting.service, 0)))
            for name, waiting in self.waiting.items()
        )

    def choose(
        self,
        planner: Planner,
        ports: Mapping[ObjectKey, Sequence[str]],
        seniority: Callable[[ObjectKey], bytes],
    ) -> Choice:
        """What the rule of lbctl/plan/rooms.py says, against what is served.

        As long as there is room for all among which age decides, only the others are gone through.
        """
        self.changed = False
        self._chosen_at = self._judged
        last = self.last
        large = {name for key in last for name in ports.get(key, ())}
        others = planner.used.minus(sum_of(_served(planner, name) for name in large))
        for name, waiting in self.waiting.items():
            if name not in large:
                others = others.plus(waiting.need).minus(_served(planner, name))
        some_leave_a_part = len(last) < len(self.grades)
        crowded = not others.fits(planner.room.limit(int(some_leave_a_part)))
        judged = ports if crowded else {key: ports[key] for key in last if key in ports}
        candidates = list(self._candidates(planner, judged, seniority))
        found = admitted(candidates, NOTHING if crowded else others, planner.room)
        if not crowded:
            found |= {name for name in self.waiting if name not in large}
        return Choice(
            {c.name: c.service for c in candidates if c.name not in found and not c.new},
            [name for name in self.waiting if name in found],
        )

    def _candidates(
        self,
        planner: Planner,
        judged: Mapping[ObjectKey, Sequence[str]],
        seniority: Callable[[ObjectKey], bytes],
    ) -> Iterator[Candidate]:
        for key, names in judged.items():
            age, grade = seniority(key), self.grades.get(key, 0)
            for index, name in enumerate(names):
                need = self.need(planner, name)
                if need:
                    new = not _is_served(planner, name)
                    yield Candidate(grade, age, new, key, index, name, need)

    def need(self, planner: Planner, name: str) -> Need | None:
        """What a port asks for, None while nothing is known of it."""
        waiting = self.waiting.get(name)
        if waiting:
            return waiting.need
        return _served(planner, name) if _is_served(planner, name) else None

    def sentences(
        self, planner: Planner, ports: Mapping[ObjectKey, Sequence[str]]
    ) -> dict[ObjectKey, str]:
        """One for each service that lost its place, or a part of it. Those that wait for a map to
        grow are served in a moment."""
        lost: dict[ObjectKey, list[Waiting]] = {}
        for waiting in self.waiting.values():
            if not planner.grows(waiting.error):
                lost.setdefault(waiting.service, []).append(waiting)
        return {
            key: self._sentence(planner, key, found, ports.get(key, ()))
            for key, found in lost.items()
        }

    def _sentence(
        self, planner: Planner, key: ObjectKey, lost: Sequence[Waiting], names: Sequence[str]
    ) -> str:
        error = lost[0].error
        place = Need._fields.index(error.map_name)
        needs = (self.need(planner, name) for name in names)
        asked = sum(need[place] for need in needs if need)
        limit = planner.room.limit(self.grades.get(key, 0))[place]
        what = f"{len(lost):,} of its {len(names):,} ports are" if len(names) > 1 else "it is"
        soon = " until entries that rest are free again" if error.resting else ""
        kept = ", as the rest is kept for smaller services" if key in self.grades else ""
        return (
            f"{key} {NO_ROOM}: {what} not served as the object says{soon}. It asks for {asked:,} "
            f"{_WORDS[error.map_name]}, and there are {limit:,} for all{kept}; start the agent "
            f"with a larger {error.flag}"
        )


def target_of(name: str) -> Target:
    """Which port of its service a full name means."""
    parsed = PortName.parse(name)
    return int(parsed.family.removeprefix("v")), parsed.port, Protocol[parsed.protocol]


def trimmed(port: ResolvedPort, limit: int) -> ResolvedPort:
    """The port with as many endpoints as one may have: the first by address, on all nodes the
    same."""
    if len(port.cluster) <= limit and len(port.local) <= limit:
        return port
    asked = len({*port.cluster, *port.local})
    said = f"{asked:,} endpoints, of which a port can use {limit:,}: raise --endpoints"
    return msgspec.structs.replace(
        port,
        cluster=port.cluster[:limit],
        local=port.local[:limit],
        warnings=(*port.warnings, said),
    )


def _is_served(planner: Planner, name: str) -> bool:
    state = planner.services.get(planner.stored_name(name))
    return state is not None and state.service is not None


def _served(planner: Planner, name: str) -> Need:
    state = planner.services.get(planner.stored_name(name))
    return need_of_state(state) if state and state.service else NOTHING


def _is_small(port: ResolvedPort, small: Need) -> bool:
    """What nearly all services are, quickly."""
    endpoints = len(port.cluster) + len(port.local)
    return (
        small.services > 0
        and endpoints <= small.backends
        and endpoints <= small.slots
        and 2 * len(port.frontends) <= small.frontends
        and len(port.source_ranges) <= small.source_ranges
    )


def _bound(ports: Sequence[ResolvedPort]) -> Need:
    """As much as these may ask for at most, quickly."""
    frontends = endpoints = ranges = 0
    for port in ports:
        frontends += 2 * len(port.frontends)
        endpoints += len(port.cluster) + len(port.local)
        ranges += len(port.source_ranges)
    return Need(len(ports), frontends, endpoints, endpoints, ranges)
