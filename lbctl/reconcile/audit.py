"""Whether the maps still hold what was written to them, looked at slowly and all the time.

The agent alone writes them; what differs, somebody broke. Each step takes a fraction of a
millisecond, so that no change waits. That what was written is what the objects mean is another
question: `lbctl verify` asks it.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeVar

import numpy as np
import structlog

from lbctl.addresses import Prefix, format_endpoint
from lbctl.datapath import filters
from lbctl.datapath.ranges import ranges_of
from lbctl.datapath.records import ADDRESS_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.regions import UNKNOWN, region_of
from lbctl.datapath.tables import ArrayTable, Records, Tables
from lbctl.model.records import ObjectKey
from lbctl.plan.changes import CLUSTER, LOCAL, Plan, PortState, Settings
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.status import Audited

T = TypeVar("T")

STEP_SECONDS: Final = 0.0004
_PORTS: Final = 6  # of each kind in one piece of work, a tenth of a millisecond or two
_FRONTENDS: Final = 24
_BITS: Final = 64
_ENTRIES: Final = 128
_RECORDS: Final = 2048
_RANGES: Final = 64
_FEW: Final = 64  # ports that are written at once
_LATELY: Final = 20
_SOME: Final = 3  # named in one sentence


class Corrections:
    """What was broken and is right again: counted by kind, and the last of it in words."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lately: deque[str] = deque(maxlen=_LATELY)
        self._log = structlog.get_logger()
        self.passes = 0
        self.answered = 0  # the last request that a whole pass followed

    def note(self, kind: str, what: Sequence[str], number: int = 0) -> None:
        """These were put right; `number` of them, if that is not how many are named."""
        number = number or len(what)
        named = ", ".join(what[:_SOME])
        if len(what) > _SOME:
            named += f" and {len(what) - _SOME} more"
        self._counts[kind] += number
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._lately.append(f"{stamp} {kind}: {named}")
        self._log.warning("corrected", kind=kind, what=named, count=number)

    def said(self) -> Audited:
        """For the status."""
        return Audited(self.answered, dict(self._counts), tuple(self._lately))


class Programmer(Protocol):
    """Who plans and writes."""

    planner: Planner

    def again(self, key: ObjectKey) -> None:
        """Plan this service anew with the next `apply`."""

    def read_back(self) -> None:
        """Believe nothing that is known of the maps."""


class Audit:
    """Goes through everything again and again, in steps."""

    def __init__(self, tables: Tables, corrections: Corrections) -> None:
        self.corrections = corrections
        self._tables = tables
        # By name: the region words and a checksum of what they lead to.
        self._digests: dict[str, tuple[int, int, int]] = {}
        self._meanwhile: set[str] = set()  # written since the pass began
        self._ranges: set[tuple[int, Prefix]] = set()  # that there should be
        self._running: Iterator[None] | None = None
        self._planner: Planner | None = None
        backends = tables.backends.records.dtype
        self._columns = address_columns(backends, "addr", "port", "flags", "service")
        self._key_columns = address_columns(
            tables.frontends.spec.key.dtype, "addr", "port", "proto"
        )
        self._todo = False

    def touched(self, planner: Planner, names: Sequence[str]) -> None:
        """Ports of these stored names were written. Of few it is noted at once what they hold; of
        many, when a pass comes by: no change is to wait for that."""
        self._meanwhile.update(names)
        for name in names:
            self._digests.pop(name, None)
            state = planner.services.get(name) if len(names) <= _FEW else None
            if state is not None:
                self._digests[name] = state.cluster, state.local, self._digest(state)

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
        self.corrections.passes += 1
        return True, self._todo

    def _pass(self, programmer: Programmer) -> Iterator[None]:
        planner = programmer.planner
        self._ranges = set()
        for names in _pieces(list(planner.services), _PORTS):
            self._check_ports(programmer, names)
            yield
        for keys in _pieces(planner.claims.keys(), _FRONTENDS):
            self._check_frontends(planner, keys)
            yield
        for found, _ in self._tables.frontends.batches(_ENTRIES):
            self._remove_strays(planner, found)
            yield
        yield from self._check_ranges(planner)
        for keys in _pieces(planner.claims.keys(), _BITS):
            self._check_frontend_bits(planner, keys)
            yield
        records = self._tables.backends.records
        for start in range(0, len(records), _RECORDS):
            bits = filters.backend_record_bits(records[start : start + _RECORDS])
            self._set_bits("endpoints' bits", self._tables.backend_filter, bits)
            yield

    # Service ports: record, name, sets of endpoints.

    def _check_ports(self, programmer: Programmer, names: Sequence[str]) -> None:
        services = programmer.planner.services
        known = [(name, state) for name in names if (state := services.get(name))]
        ids = [state.id for _, state in known]
        self._check_names(known)
        records = self._tables.services.records[ids]
        columns = (records[field].tolist() for field in (CLUSTER, LOCAL, *Settings._fields))
        for (name, state), *values in zip(known, *columns, strict=True):
            if UNKNOWN in (state.cluster, state.local):
                continue
            self._ranges.update((state.id, prefix) for prefix in state.ranges)
            if values != [state.cluster, state.local, *state.settings]:
                self._restore(state)
                self.corrections.note("service", [name])
            digest = state.cluster, state.local, self._digest(state)
            before = self._digests.setdefault(name, digest)
            if before[:2] != digest[:2]:
                self._digests[name] = digest
            elif before != digest:
                self._sets_differ(programmer, name, state)

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
            writes.put_names(Plan(names=wrong), self._tables)
            self.corrections.note("name", [name for _, name in wrong])

    def _restore(self, state: PortState) -> None:
        services = self._tables.services
        writes.set_up_services(Plan(new_settings=[(state.id, state.settings)]), self._tables)
        services.store_word(state.id, CLUSTER, state.cluster)
        services.store_word(state.id, LOCAL, state.local)

    def _digest(self, state: PortState) -> int:
        """Of the slots of both sets, and of the backends in them: not of their generations, which
        cannot be told from what they should be."""
        found = 0
        backends = self._tables.backends.records
        for base, length in {region_of(state.cluster), region_of(state.local)}:
            if length:
                ids = self._tables.slots.records["backend"][base : base + length]
                found = zlib.crc32(ids.tobytes(), found)
                if int(ids.max()) < len(backends):
                    rows = rows_as_bytes(backends[ids])[:, self._columns]
                    found = zlib.crc32(rows.tobytes(), found)
        return found

    def _sets_differ(self, programmer: Programmer, name: str, state: PortState) -> None:
        self._todo = True
        self._digests.pop(name)
        self.corrections.note("endpoints", [name])
        if self._is_sound(state) and state.service is not None:
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

    # Addresses.

    def _check_frontends(self, planner: Planner, keys: Sequence[bytes]) -> None:
        table, claims = self._tables.frontends, planner.claims
        wanted = [(key, *owner) for key in keys if (owner := claims.owner_and_flags(key))]
        blank = bytes(table.spec.value.size)
        found = [table.get(row.tobytes()) or blank for row in self._rows(k for k, _, _ in wanted)]
        records = np.frombuffer(b"".join(found), table.spec.value.dtype)
        itself = rows_as_bytes(np.ascontiguousarray(records["self"]))[:, self._key_columns]
        said = zip(
            map(bytes, itself), records["service"].tolist(), records["flags"].tolist(), strict=True
        )
        wrong = [entry for entry, says in zip(wanted, said, strict=True) if entry != says]
        if wrong:
            writes.put_frontends(Plan(frontends=wrong), self._tables)
            self.corrections.note("frontend", [_place(key) for key, _, _ in wrong])

    def _rows(self, keys: Iterable[bytes]) -> Records:
        found = list(keys)
        rows = np.zeros(len(found), self._tables.frontends.spec.key.dtype)
        width = len(self._key_columns)
        raw = np.frombuffer(b"".join(found), np.uint8).reshape(-1, width)
        rows_as_bytes(rows)[:, self._key_columns] = raw
        return rows

    def _remove_strays(self, planner: Planner, found: Records) -> None:
        table, width = self._tables.frontends, len(self._key_columns)
        raw = rows_as_bytes(found)[:, self._key_columns].tobytes()
        keys = [raw[start : start + width] for start in range(0, len(raw), width)]
        nobodys = [
            (key, entry.tobytes())
            for key, entry in zip(keys, found, strict=True)
            if planner.claims.owner(key) is None
        ]
        strays = [key for key, entry in nobodys if table.get(entry) is not None]
        if strays:
            writes.delete_frontends(Plan(frontends_gone=strays), self._tables)
            self.corrections.note("stray frontend", [_place(key) for key in strays])

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
        if missing:
            writes.put_ranges(Plan(ranges=missing), self._tables)
        if strays:
            writes.delete_ranges(Plan(ranges_gone=strays), self._tables)
        if missing or strays:
            self.corrections.note("source range", [str(prefix) for _, prefix in missing + strays])

    # The filters' bits: one that is missing hides what is there.

    def _check_frontend_bits(self, planner: Planner, keys: Sequence[bytes]) -> None:
        wanted = [(key, owner[1]) for key in keys if (owner := planner.claims.owner_and_flags(key))]
        services, called = filters.frontend_bits([k for k, _ in wanted], [f for _, f in wanted])
        self._set_bits("addresses' bits", self._tables.service_filter, services)
        self._set_bits("addresses' bits", self._tables.backend_filter, called)

    def _set_bits(self, what: str, table: ArrayTable, bits: filters.Bits) -> None:
        stored = filters.set_bits(table, bits)
        if stored:
            self.corrections.note("filter", [f"{what} in {table.name}"], stored)


def _pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _place(key: bytes) -> str:
    port = int.from_bytes(key[ADDRESS_BYTES : ADDRESS_BYTES + 2], "big")
    protocol = key[ADDRESS_BYTES + 2]
    if not protocol:
        return f"{format_endpoint(key[:ADDRESS_BYTES], port)} (marker)"
    return f"{format_endpoint(key[:ADDRESS_BYTES], port)} of protocol {protocol}"
