"""The sweep: a slow walk over all flows, that ends those nobody ended and sees who is still needed.

A flow's two entries live and die together, when neither direction was seen for as long as its state
allows. The walk is a generator of short steps, so that a change never waits for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts, filters
from lbctl.datapath import flows as flowrecords
from lbctl.datapath.consts import current_tick
from lbctl.datapath.flows import STEP_ENTRIES
from lbctl.datapath.records import rows_as_bytes
from lbctl.datapath.tables import HashTable, Records, Tables

FAMILIES: Final = ("4", "6")


class _Said(NamedTuple):
    """What table_state holds when there may be some, and when there are none."""

    some: int
    none: int


_SAID: Final = {
    "overflowed": _Said(1, 0),
    "direct": _Said(1, 0),
    "notes": _Said(consts.NOTES_POSSIBLE, consts.NOTES_NONE),
}
# What the agent writes over what the programs said, to see whether they say it again. They take it
# for "some".
_DOUBTED = 2


@dataclass(slots=True)
class Found:
    """What one complete sweep saw of flows that live on."""

    began: float  # the agent's clock
    services: npt.NDArray[np.bool_]  # by service id: has flows
    backends: npt.NDArray[np.bool_]  # by backend id
    addresses: npt.NDArray[np.bool_]  # by bit of service_filter: flows go to such an address
    endpoints: npt.NDArray[np.bool_]  # by bit of backend_filter: ... and to such a port of it
    entries: dict[str, int] = field(default_factory=dict)  # by map name
    ended: int = 0  # entries deleted


class Sweep:
    """Sweeps over the flow tables of one instance."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._by_name: dict[str, HashTable] = {
            "flows4": tables.flows4,
            "flows4_lru": tables.flows4_lru,
            "flows6": tables.flows6,
            "flows6_lru": tables.flows6_lru,
        }

    def run(self, began: float) -> Iterator[Found | None]:
        """One sweep: yields None after every step, and at its end what it found."""
        tables = self._tables
        found = Found(
            began,
            np.zeros(tables.services.max_entries, bool),
            np.zeros(tables.backends.max_entries, bool),
            np.zeros(1 << consts.SERVICE_FILTER_BITS, bool),
            np.zeros(1 << consts.BACKEND_FILTER_BITS, bool),
        )
        for family in FAMILIES:
            yield from self._sweep_family(family, found)
        yield found

    def tcp_load(self) -> float:
        """How full the fuller of the two TCP tables is, 0 to 1, by the programs' own count."""
        state = self._tables.table_state.records[0]
        return max(
            int(state["tcp_entries4"]) / self._tables.flows4.max_entries,
            int(state["tcp_entries6"]) / self._tables.flows6.max_entries,
        )

    def _sweep_family(self, family: str, found: Found) -> Iterator[None]:
        """The LRU table first: entries move from it to the plain one, and must not be missed."""
        plain, lru = f"flows{family}", f"flows{family}_lru"
        state = self._tables.table_state.records
        watched = {f"{name}{family}": False for name in _SAID}
        for name in watched:
            if state[name][0] != _SAID[name[:-1]].none:
                state[name][0] = _DOUBTED
        before = int(state[f"tcp_entries{family}"][0])
        deleted_before = found.ended
        for name in (lru, plain):
            found.entries[name] = 0
            for keys, values in self._by_name[name].batches():
                for start in range(0, len(keys), STEP_ENTRIES * 16):
                    part = slice(start, start + STEP_ENTRIES * 16)
                    live = np.ones(len(keys[part]), bool)
                    yield from self._end_idle(name, keys[part], values[part], live, found)
                    self._note(name, keys[part][live], values[part][live], found, watched)
                    yield None
        for name, seen in watched.items():
            if seen:
                state[name][0] = _SAID[name[:-1]].some
            elif state[name][0] == _DOUBTED:
                state[name][0] = _SAID[name[:-1]].none
        self._correct_count(family, before, found.ended - deleted_before, found.entries[plain])

    def _note(
        self, name: str, keys: Records, values: Records, found: Found, watched: dict[str, bool]
    ) -> None:
        family = name[5]
        found.entries[name] += len(keys)
        found.services[values["service"][values["service"] < len(found.services)]] = True
        backends = values["backend"] & consts.BACKEND_ID_MASK
        found.backends[backends[backends < len(found.backends)]] = True
        direct = values["flags"] & consts.FLOW_DIRECT != 0
        from_pod = ~direct & ~flowrecords.is_reply(values)
        rows = flowrecords.wide_addresses(keys["dst"][from_pod])
        for kind in (0, 1):  # whether it was a ClusterIP is not known any more
            found.addresses[filters.address_bits(rows, kind)] = True
        found.endpoints[filters.endpoint_bits(rows, keys["dport"][from_pod])] = True
        # Mere notes of direct conversations change no packet, so nobody need look for them then.
        watched[f"direct{family}"] |= bool((direct & ~flowrecords.is_reply(values)).any())
        if name.endswith("_lru"):
            tcp = keys["proto"] == consts.IPPROTO_TCP
            # A note says of its tuple what it is.
            noted = tcp & direct & flowrecords.is_reply(values)
            noted &= values["client_port"] == keys["dport"]
            watched[f"notes{family}"] |= bool(noted.any())
            watched[f"overflowed{family}"] |= bool((tcp & ~noted).any())

    def _end_idle(
        self,
        name: str,
        keys: Records,
        values: Records,
        live: npt.NDArray[np.bool_],
        found: Found,
    ) -> Iterator[None]:
        """Delete idle flows among these entries, and clear their places in `live`."""
        limits = flowrecords.timeouts(self._tables.config.records[0])
        tick = current_tick()
        idle = np.flatnonzero(flowrecords.expired(values, limits, tick))
        for start in range(0, len(idle), STEP_ENTRIES):
            part = idle[start : start + STEP_ENTRIES]
            picked = flowrecords.take(keys, part), flowrecords.take(values, part)
            dead = self._dead(name, *picked, limits, tick, found)
            live[part[dead]] = False
            yield None

    def _dead(
        self,
        name: str,
        keys: Records,
        values: Records,
        limits: npt.NDArray[np.int64],
        tick: int,
        found: Found,
    ) -> npt.NDArray[np.bool_]:
        """End those of these idle entries whose partner is idle or gone; returns which."""
        sides = values["state"] == consts.FLOW_SIDE
        partners = flowrecords.pair_keys(keys, values)
        partners[sides] = flowrecords.side_owners(keys[sides], values[sides])
        where, raw = self._look_up(name, partners)
        pairs = np.frombuffer(b"".join(raw), values.dtype)
        there = np.array([bool(w) for w in where])
        paired = there & flowrecords.are_pairs(pairs, keys, values)
        alive = (paired & ~flowrecords.expired(pairs, limits, tick)) | (sides & there)
        gone = np.zeros(len(keys), bool)
        ended: list[tuple[bytes, bytes]] = []
        raw_keys, raw_values = _pieces(keys), _pieces(values)
        raw_partners = _pieces(partners)
        for i in np.flatnonzero(~alive).tolist():
            if not self._delete(name, raw_keys[i], raw_values[i], found):
                # It moved in the meantime, or went with its partner a moment ago.
                gone[i] = self._by_name[name].get(raw_keys[i]) is None
                continue
            gone[i] = True
            ended.append((raw_keys[i], raw_values[i]))
            if paired[i] and self._delete(where[i], raw_partners[i], raw[i], found):
                ended.append((raw_partners[i], raw[i]))
        self._count(ended, keys.dtype, values.dtype)
        return gone

    def _look_up(self, name: str, keys: Records) -> tuple[list[str], list[bytes]]:
        """Where each key is found ("" for nowhere), and its value's bytes (or zeros)."""
        family = name[5]
        tables = (f"flows{family}", f"flows{family}_lru")
        blank = bytes(self._by_name[name].spec.value.size)
        where, values = [], []
        for key, proto in zip(_pieces(keys), keys["proto"].tolist(), strict=True):
            for table in tables if proto == consts.IPPROTO_TCP else tables[1:]:
                value = self._by_name[table].get(key)
                if value is not None:
                    where.append(table)
                    values.append(value)
                    break
            else:
                where.append("")
                values.append(blank)
        return where, values

    def _delete(self, name: str, key: bytes, value: bytes, found: Found) -> bool:
        """Delete an entry, if it is still what was read: a new connection may have taken it."""
        table = self._by_name[name]
        if table.get(key) != value or not table.delete(key):
            return False
        found.ended += 1
        if not name.endswith("_lru"):
            state = self._tables.table_state.records[f"tcp_entries{name[5]}"]
            if state[0]:
                state[0] -= np.uint64(1)
        return True

    def _count(
        self, ended: list[tuple[bytes, bytes]], key_type: np.dtype, value_type: np.dtype
    ) -> None:
        """Add what ended flows had not yet added to their services' counters.

        The programs add to the same numbers with atomic instructions, which Python has not: a
        packet counted in between these loads and stores can be lost, a flow's never.
        """
        values = np.frombuffer(b"".join(value for _, value in ended), value_type)
        counted = (
            (values["tick_packets"] > 0)
            & (values["state"] != consts.FLOW_SIDE)
            & (values["flags"] & consts.FLOW_DIRECT == 0)
        )
        counters = self._tables.service_counters.records
        for value in values[counted]:
            service = int(value["service"])
            if service >= len(counters):
                continue
            way = "out" if value["flags"] & consts.FLOW_REPLY else "in"
            counters[f"packets_{way}"][service] += np.uint64(value["tick_packets"])
            counters[f"bytes_{way}"][service] += np.uint64(value["tick_bytes"])

    def _correct_count(self, family: str, before: int, deleted: int, counted: int) -> None:
        """Set the number of TCP entries right, unless it only moved while we counted."""
        column = self._tables.table_state.records[f"tcp_entries{family}"]
        now = int(column[0])
        moved = abs(now - (before - deleted))
        if abs(counted - now) > 2 * moved:
            column[0] = counted


def _pieces(records: Records) -> list[bytes]:
    raw = rows_as_bytes(np.ascontiguousarray(records)).tobytes()
    size = records.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
