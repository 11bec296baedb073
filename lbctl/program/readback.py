"""Reading back what an earlier agent programmed, so that a start writes only what differs.

What does not add up (a frontend of a service without a name, a region with foreign backends) is
left in place and remembered as unknown: the first complete plan replaces it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.maps import buckets
from lbctl.addresses import Prefix
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.ranges import ranges_of
from lbctl.datapath.records import ADDRESS_BYTES
from lbctl.datapath.regions import UNKNOWN, ArrayContents, table_places
from lbctl.datapath.tables import Records, Tables
from lbctl.model.names import PortName
from lbctl.plan.changes import CLUSTER, LOCAL, Plan, PortState, Settings
from lbctl.plan.claims import MARKER_FLAGS
from lbctl.plan.planner import Planner
from lbctl.plan.rooms import Need, Room
from lbctl.program import balancing, writes
from lbctl.program.regions import Numbers, misplaced, regions_of


@dataclass(slots=True)
class Leftovers:
    """What an interrupted agent did not come to do, or what nobody can have done on purpose."""

    lowered: list[tuple[int, int]] = field(default_factory=list)  # backends in no set: id, flags
    names: list[int] = field(default_factory=list)  # names of impossible ids
    unknown: list[str] = field(default_factory=list)  # services whose sets do not add up
    strays: int = 0  # frontends of nobody
    ranges: list[tuple[int, Prefix]] = field(default_factory=list)  # source ranges of nobody

    def describe(self) -> Iterator[str]:
        """Sentences for the log."""
        if self.unknown:
            yield f"endpoint sets that do not add up are written anew: {', '.join(self.unknown)}"
        if self.strays:
            yield f"{self.strays} frontends belong to no service and will be removed or replaced"
        if self.lowered:
            yield f"{len(self.lowered)} backends had left their sets but were marked as serving"


def read(tables: Tables, now: float, most: Need | None = None) -> tuple[Planner, Leftovers]:
    """A planner that knows what `tables` hold. Ids and regions nobody refers to rest from `now`.
    `most` is what the maps may hold when they have grown; None: they do not."""
    there = room_of(tables)
    name_bytes = tables.names.spec.value.field("text").size - 1
    contents, places = contents_of(tables), table_places(tables.hash_tables.records).size
    planner = Planner(contents, Room(most or there, name_bytes), places)
    planner.grow(there, contents, places)
    leftovers = Leftovers()
    by_id = _read_names(tables, planner, leftovers)
    _read_services(tables, by_id)
    used = _read_regions(tables, planner, leftovers, now)
    balancing.read(tables, planner, by_id, now)
    _rest_ids(tables, planner, leftovers, used, now)
    _read_frontends(tables, planner, by_id, leftovers)
    _read_ranges(tables, planner, by_id, leftovers)
    return planner, leftovers


def room_of(tables: Tables) -> Need:
    """What the maps hold as they are."""
    names = ("services", "names", "frontends", "slots", "backends", "source_ranges")
    return room_for({name: getattr(tables, name).max_entries for name in names})


def room_for(entries: Mapping[str, int]) -> Need:
    """What maps of so many entries hold, by name."""
    return Need(
        services=min(entries["services"] - 1, entries["names"]),
        # Every backend in use may be an endpoint of its own.
        frontends=buckets.keys_for(entries["frontends"]) - entries["backends"] // 2,
        slots=entries["slots"],
        backends=entries["backends"] - 1,
        source_ranges=entries["source_ranges"],
    )


def contents_of(tables: Tables) -> ArrayContents:
    """What regions and backends are in them."""
    return ArrayContents(tables.slots.records, tables.backends.records, tables.hash_tables.records)


def count_services(tables: Tables) -> int:
    """How many services an earlier agent left programmed."""
    _, values = tables.names.read_all()
    texts = (text.decode(errors="replace") for text in values["text"].tolist())
    return len({PortName.parse(text).owner for text in texts})


def repair(planner: Planner, leftovers: Leftovers, tables: Tables) -> int:
    """Finish what was interrupted, as far as it deletes nothing, also in maps that are being
    replaced. Returns the number of stores."""
    unmarked = [(key, 0, flags) for key, flags in planner.claims.take_unmarked()]
    return [_repair(leftovers, unmarked, one) for one in writes.in_use(tables)][-1]


def _repair(leftovers: Leftovers, unmarked: list[tuple[bytes, int, int]], tables: Tables) -> int:
    for number, flags in leftovers.lowered:
        tables.backends.records["flags"][number] = flags
    for number in leftovers.names:
        key = np.zeros(1, tables.names.spec.key.dtype)
        key["service"] = number
        tables.names.delete_many(key)
    writes.delete_ranges(Plan(ranges_gone=leftovers.ranges), tables)
    frontends = Frontends(tables.frontends)
    stored = frontends.repair(tables.backends.records)
    frontends.put(unmarked)
    entries = len(leftovers.names) + len(leftovers.ranges) + len(unmarked)
    return stored + len(leftovers.lowered) + entries


def _read_names(tables: Tables, planner: Planner, leftovers: Leftovers) -> dict[int, PortState]:
    keys, values = tables.names.read_all()
    by_id: dict[int, PortState] = {}
    most = tables.services.max_entries
    named = zip(keys["service"].tolist(), values["text"].tolist(), strict=True)
    for number, text in sorted(named):
        name = text.decode(errors="replace")
        if not 0 < number < most:
            leftovers.names.append(number)
        elif name in planner.services:
            # Two ids of one name: the second rests, and is freed with its name.
            planner.retired[f"{name} ({number})"] = PortState(number)
        else:
            by_id[number] = planner.adopt(name, number)
    return by_id


def _read_services(tables: Tables, by_id: dict[int, PortState]) -> None:
    ids = list(by_id)
    records = tables.services.records[ids]
    columns = (records[name].tolist() for name in Settings._fields)
    known: dict[Settings, Settings] = {}  # nearly all have the same
    words = records[CLUSTER].tolist(), records[LOCAL].tolist()
    every = map(Settings._make, zip(*columns, strict=True))
    for state, cluster, local, settings in zip(by_id.values(), *words, every, strict=True):
        state.cluster, state.local = cluster, local
        state.settings = known.setdefault(settings, settings)


def _read_ranges(
    tables: Tables, planner: Planner, by_id: dict[int, PortState], leftovers: Leftovers
) -> None:
    """Source ranges by service; those of nobody are removed by `repair`."""
    found: dict[int, list[Prefix]] = {}
    keys, _ = tables.source_ranges.read_all()
    for number, prefix in ranges_of(keys):
        found.setdefault(number, []).append(prefix)
    for number, ranges in found.items():
        if number in by_id:
            by_id[number].ranges = tuple(sorted(ranges))
            planner.range_entries += len(ranges)
        else:
            leftovers.ranges.extend((number, prefix) for prefix in ranges)


def _read_regions(
    tables: Tables, planner: Planner, leftovers: Leftovers, now: float
) -> npt.NDArray[np.int64]:
    """Check every set; returns the ids of the backends in them."""
    names = list(planner.services)
    states = list(planner.services.values())
    words = np.array([(s.cluster, s.local) for s in states], np.uint64).reshape(-1, 2)
    ids = np.array([s.id for s in states], np.int64)
    regions = regions_of(words)  # columns: place in `states`, base, length
    bad = misplaced(regions, tables.slots.max_entries)
    fine = regions[~np.isin(regions[:, 0], bad)]
    place, members = _members(fine, tables.slots.records["backend"])
    bad = np.union1d(bad, place[_foreign(members, ids[place], tables.backends.records)])
    for index in bad.tolist():
        leftovers.unknown.append(names[index])
        states[index].cluster = states[index].local = UNKNOWN
    fine = regions[~np.isin(regions[:, 0], bad)]
    sound = ~np.isin(place, bad)
    counts = _counted(place[sound], members[sound], len(states))
    for state, endpoints in zip(states, counts, strict=True):
        state.endpoints = endpoints
    written = np.flatnonzero(tables.slots.records["backend"])
    ends = fine[:, 1] + fine[:, 2]
    top = max(int(written.max(initial=-1)) + 1, int(ends.max(initial=0)))
    planner.regions.adopt(fine[:, 1:], top, now)
    held = np.zeros(len(tables.backends.records), bool)
    held[members[sound]] = True  # far quicker than sorting them
    return np.flatnonzero(held)


def _members(regions: Numbers, slots: npt.NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Row and backend id of every slot of `regions`."""
    lengths = regions[:, 2]
    starts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    indices = np.repeat(regions[:, 1], lengths) + within
    return np.repeat(regions[:, 0], lengths), slots[indices].astype(np.int64)


def _counted(place: Numbers, members: Numbers, places: int) -> list[int]:
    """For each place how many members it has, those that it has twice once."""
    pairs = np.unique(place << 32 | members)
    counts: list[int] = np.bincount(pairs >> 32, minlength=places).tolist()
    return counts


def _foreign(members: Numbers, services: Numbers, backends: Records) -> npt.NDArray[np.bool_]:
    """Which members are no backend of the service they are listed for."""
    outside = (members <= 0) | (members >= len(backends))
    found = np.where(outside, 0, members)
    foreign: npt.NDArray[np.bool_] = (
        outside | (backends["service"][found] != services) | (backends["port"][found] == 0)
    )
    return foreign


def _rest_ids(
    tables: Tables, planner: Planner, leftovers: Leftovers, used: Numbers, now: float
) -> None:
    backends = tables.backends.records
    left = backends["port"] != 0
    left[used] = False
    resting = np.flatnonzero(left)
    planner.backend_ids.adopt(used, resting, now)
    flags = backends["flags"][resting]
    for number, bits in zip(resting.tolist(), flags.tolist(), strict=True):
        if bits & ~(consts.BACKEND_LOCAL | consts.BACKEND_ENDING):
            leftovers.lowered.append((number, bits & consts.BACKEND_LOCAL))

    services = tables.services.records
    named = np.array([s.id for s in planner.services.values()], np.int64)
    twice = np.array([s.id for s in planner.retired.values()], np.int64)
    written = np.flatnonzero(services["cluster"] | services["local"] | services["flags"])
    unnamed = np.zeros(len(services), bool)
    unnamed[written] = unnamed[twice] = True
    unnamed[named] = False
    rest = np.flatnonzero(unnamed)
    planner.service_ids.adopt(named, rest[rest > 0], now)


def _read_frontends(
    tables: Tables, planner: Planner, by_id: dict[int, PortState], leftovers: Leftovers
) -> None:
    entries = Frontends(tables.frontends).read_all()
    width = entries.keys.shape[1]
    raw = entries.keys.tobytes()
    found: dict[int, list[tuple[bytes, int]]] = {}
    markers: dict[bytes, int] = {}
    strays = []
    columns = zip(entries.services.tolist(), entries.flags.tolist(), strict=True)
    for index, (service, flags) in enumerate(columns):
        key = raw[index * width : (index + 1) * width]
        if service in by_id:
            found.setdefault(service, []).append((key, flags))
            planner.claims.adopt(key, service, flags)
        elif not service and flags & MARKER_FLAGS == flags:
            markers[key[:ADDRESS_BYTES]] = flags
        else:
            strays.append(key)
    for service, frontends in found.items():
        by_id[service].frontends = tuple(sorted(frontends))  # as resolving has them
    planner.claims.adopt_markers(markers, strays)
    leftovers.strays = len(strays)
