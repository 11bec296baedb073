"""Whether the maps still hold what was written to them, looked at slowly and all the time.

The agent alone writes them; what differs, somebody broke. Each step takes a fraction of a
millisecond, so that no change waits. That what was written is what the objects mean is another
question: `lbctl verify` asks it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lbctl.addresses import Prefix
from lbctl.datapath.ranges import ranges_of
from lbctl.datapath.records import ADDRESS_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.regions import UNKNOWN, region_of, table_places
from lbctl.datapath.tables import Tables
from lbctl.model.records import ObjectKey
from lbctl.plan.changes import CLUSTER, LOCAL, TABLES, Plan, PortState, Settings
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.reconcile.auditaddresses import check_addresses
from lbctl.reconcile.corrections import Corrections, pieces

STEP_SECONDS: Final = 0.0004
_PORTS: Final = 6  # of each kind in one piece of work, a tenth of a millisecond or two
_ENTRIES: Final = 128
_RANGES: Final = 64
_FEW: Final = 64  # ports that are written at once
# Fields of struct service, and of the planner's state, that name regions.
_WORDS: Final = (CLUSTER, LOCAL, *TABLES.values())


class Programmer(Protocol):
    """Who plans and writes."""

    planner: Planner

    def again(self, key: ObjectKey) -> None:
        """Plan this service anew with the next `apply`."""

    def read_back(self) -> None:
        """Believe nothing that is known of the maps."""


class _Digest(NamedTuple):
    """The region words of a port, and a checksum of the slots of both sets, of the backends in them
    (not of their generations, which cannot be told from what they should be; `since` apart) and of
    the tables."""

    words: tuple[int, ...]
    found: int


class Audit:
    """Goes through everything again and again, in steps."""

    def __init__(self, tables: Tables, corrections: Corrections) -> None:
        self.corrections = corrections
        self._tables = tables
        self._digests: dict[str, _Digest] = {}
        # By backend id. Nothing else says it: a plan believes what is in the map.
        self._since = tables.backends.records["since"].copy()
        self._meanwhile: set[str] = set()  # written since the pass began
        self._ranges: set[tuple[int, Prefix]] = set()  # that there should be
        self._running: Iterator[None] | None = None
        self._planner: Planner | None = None
        backends = tables.backends.records.dtype
        self._columns = address_columns(backends, "addr", "port", "flags", "service", "weight")
        self._todo = False

    def touched(self, planner: Planner, names: Sequence[str]) -> None:
        """Ports of these stored names were written. Of few it is noted at once what they hold; of
        many, when a pass comes by: no change is to wait for that."""
        self._meanwhile.update(names)
        for name in names:
            self._digests.pop(name, None)
            state = planner.services.get(name) if len(names) <= _FEW else None
            if state is not None:
                self._believe(name, state)

    def step(self, programmer: Programmer) -> tuple[bool, bool]:
        """Go on for a moment. Returns whether a pass ended, and whether there is something to
        `apply`."""
        if self._running is None or self._planner is not programmer.planner:
            self._planner = programmer.planner
            self._digests = {k: v for k, v in self._digests.items() if k in self._planner.services}
            self._meanwhile.clear()
            self._running = self._pass(programmer)
        self._todo = False
        until = time.perf_counter() + STEP_SECONDS
        for _ in self._running:
            if self._todo or time.perf_counter() >= until:
                return False, self._todo
        self._running = None
        return True, self._todo

    def _pass(self, programmer: Programmer) -> Iterator[None]:
        planner = programmer.planner
        self._ranges = set()
        for names in pieces(list(planner.services), _PORTS):
            self._check_ports(programmer, names)
            yield
        yield from check_addresses(planner, self._tables, self.corrections)
        yield from self._check_ranges(planner)

    # Service ports: record, name, sets of endpoints.

    def _check_ports(self, programmer: Programmer, names: Sequence[str]) -> None:
        services = programmer.planner.services
        known = [(name, state) for name in names if (state := services.get(name))]
        ids = [state.id for _, state in known]
        self._check_names(known)
        records = self._tables.services.records[ids]
        columns = (records[field].tolist() for field in (*_WORDS, *Settings._fields))
        for (name, state), *values in zip(known, *columns, strict=True):
            words = _words(state)
            if UNKNOWN in words:
                continue
            self._ranges.update((state.id, prefix) for prefix in state.ranges)
            if values != [*words, *state.settings]:
                self._restore(state)
                self.corrections.note("service", [name])
            before, digest = self._digests.get(name), self._digest(state)
            if before is None or before.words != digest.words:
                self._believe(name, state)
            elif before != digest:
                self._sets_differ(programmer, name, state)
            elif self._restore_since(state):
                self.corrections.note("endpoints", [name])

    def _check_names(self, known: Sequence[tuple[str, PortState]]) -> None:
        names = self._tables.names
        keys = np.zeros(len(known), names.spec.key.dtype)
        values = np.zeros(len(known), names.spec.value.dtype)
        keys["service"] = [state.id for _, state in known]
        values["text"] = [name.encode() for name, _ in known]
        wrong = [
            (state.id, name)
            for (name, state), key, value in zip(known, keys, values, strict=True)
            if names.get(key.tobytes()) != value.tobytes()
        ]
        if wrong:
            writes.apply(Plan(names=wrong), self._tables)
            self.corrections.note("name", [name for _, name in wrong])

    def _restore(self, state: PortState) -> None:
        words = [(state.id, field, getattr(state, field)) for field in _WORDS]
        plan = Plan(words=words, settings=[(state.id, state.settings)])
        writes.apply(plan, self._tables)

    def _believe(self, name: str, state: PortState) -> None:
        """What is there is what is to be there."""
        self._digests[name] = self._digest(state)
        records = self._tables.backends.records["since"]
        if len(self._since) < len(records):  # the map has grown
            self._since = np.concatenate([self._since, records[len(self._since) :]])
        for ids in self._members(state):
            self._since[ids] = records[ids]

    def _restore_since(self, state: PortState) -> bool:
        """Let its endpoints have begun when they began; returns whether somebody changed that."""
        says = self._tables.backends.records["since"]
        wrong = [i for ids in self._members(state) for i in ids[says[ids] != self._since[ids]]]
        if wrong:
            began = [(int(number), int(self._since[number])) for number in wrong]
            writes.apply(Plan(begun=began), self._tables)
        return bool(wrong)

    def _members(self, state: PortState) -> Iterator[npt.NDArray[np.uint32]]:
        """Ids of the backends of each set."""
        slots, room = self._tables.slots.records, len(self._tables.backends.records)
        for base, length in {region_of(state.cluster), region_of(state.local)}:
            ids = slots["backend"][base : base + length]
            yield ids[ids < room]

    def _digest(self, state: PortState) -> _Digest:
        """Of what is there."""
        found = 0
        backends, slots = self._tables.backends.records, self._tables.slots.records
        for base, length in {region_of(state.cluster), region_of(state.local)}:
            if length:
                region = slots[base : base + length]
                found = zlib.crc32(region.tobytes(), found)
                ids = region["backend"]
                if int(ids.max()) < len(backends):
                    rows = rows_as_bytes(backends[ids])[:, self._columns]
                    found = zlib.crc32(rows.tobytes(), found)
        places = table_places(self._tables.hash_tables.records)
        for base, length in map(region_of, (state.cluster_table, state.local_table)):
            found = zlib.crc32(places[base : base + length].tobytes(), found)
        return _Digest(_words(state), found)

    def _sets_differ(self, programmer: Programmer, name: str, state: PortState) -> None:
        self._todo = True
        self._digests.pop(name)
        self.corrections.note("endpoints", [name])
        if self._is_sound(state) and state.service is not None:
            # Have shares compared though all weights are the same, and tables though they were
            # made of the same.
            state.shaped = True
            state.made_of.clear()
            programmer.again(state.service)
        else:
            programmer.read_back()

    def _is_sound(self, state: PortState) -> bool:
        """Whether what is there can be planned from: each slot has a backend of this service, and
        none is there twice."""
        backends = self._tables.backends.records
        for base, length in {region_of(state.cluster), region_of(state.local)}:
            ids = self._tables.slots.records["backend"][base : base + length]
            if not length:
                continue
            if int(ids.max()) >= len(backends) or (backends["service"][ids] != state.id).any():
                return False
            rows = rows_as_bytes(backends[ids])[:, self._columns[: ADDRESS_BYTES + 2]]
            if (backends["port"][ids] == 0).any() or len(np.unique(rows, axis=0)) != length:
                return False
        return True

    def _check_ranges(self, planner: Planner) -> Iterator[None]:
        """Source ranges: a trie does not tell whether it has an entry, so it is walked."""
        found: set[tuple[int, Prefix]] = set()
        for keys, _ in self._tables.source_ranges.batches(_ENTRIES):
            for start in range(0, len(keys), _RANGES):
                found.update(ranges_of(keys[start : start + _RANGES]))
                yield
        names = {
            state.id: name for name in self._meanwhile if (state := planner.services.get(name))
        }
        retired = {state.id for state in planner.retired.values()}
        known = names.keys() | retired
        missing = sorted(item for item in self._ranges - found if item[0] not in known)
        strays = sorted(item for item in found - self._ranges if item[0] not in known)
        if missing or strays:
            writes.apply(Plan(ranges=missing, ranges_gone=strays), self._tables)
            self.corrections.note("source range", [str(prefix) for _, prefix in missing + strays])


def _words(state: PortState) -> tuple[int, ...]:
    return tuple(getattr(state, field) for field in _WORDS)
