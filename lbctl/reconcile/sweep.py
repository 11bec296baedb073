"""The sweep: a slow walk over all flows, that ends those nobody ended and sees who is still needed.

A flow's two entries live and die together, when neither direction was seen for as long as its state
allows. The walk is a generator of short steps, so that a change never waits for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lbctl.addresses import FAMILIES
from lbctl.datapath import consts, flows
from lbctl.datapath.consts import current_tick
from lbctl.datapath.flows import STEP_ENTRIES, Mask
from lbctl.datapath.tables import HashTable, Records, Tables
from lbctl.reconcile.flowtables import Entry, FlowTables, pieces


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
class Swept:
    """What one complete sweep saw of flows that live on."""

    began: float  # the agent's clock
    services: npt.NDArray[np.bool_]  # by service id: has flows
    backends: npt.NDArray[np.bool_]  # by backend id
    entries: dict[str, int] = field(default_factory=dict)  # by map name
    ended: int = 0  # entries deleted


class Sweep:
    """Sweeps over the flow tables of one instance."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._families = [FlowTables(tables, family) for family in FAMILIES]

    def run(self, began: float) -> Iterator[Swept | None]:
        """One sweep: yields None after every step, and at its end what it found."""
        tables = self._tables
        found = Swept(
            began,
            np.zeros(tables.services.max_entries, bool),
            np.zeros(tables.backends.max_entries, bool),
        )
        for family in self._families:
            yield from self._sweep_family(family, found)
        yield found

    def tcp_load(self) -> float:
        """How full the fuller of the two TCP tables is, 0 to 1."""
        return max(family.load() for family in self._families)

    def _sweep_family(self, family: FlowTables, found: Swept) -> Iterator[None]:
        """The LRU table first: entries move from it to the plain one, and must not be missed."""
        seen = dict.fromkeys(_SAID, False)
        for name, said in _SAID.items():
            if family.state(name)[0] != said.none:
                family.state(name)[0] = _DOUBTED
        before = int(family.state("tcp_entries")[0])
        ended_before = found.ended
        for table in (family.lru, family.plain):
            found.entries[table.name] = 0
            for keys, values in table.batches():
                for start in range(0, len(keys), STEP_ENTRIES * 16):
                    part = slice(start, start + STEP_ENTRIES * 16)
                    live = np.ones(len(keys[part]), bool)
                    yield from self._end_idle(family, table, keys[part], values[part], live, found)
                    living = keys[part][live], values[part][live]
                    found.entries[table.name] += len(living[0])
                    _note(living[1], found)
                    _note_said(*living, seen, overflow=table is family.lru)
                    yield None
        for name, said in _SAID.items():
            if seen[name]:
                family.state(name)[0] = said.some
            elif family.state(name)[0] == _DOUBTED:
                family.state(name)[0] = said.none
        ended = found.ended - ended_before
        family.correct_entries(before, ended, found.entries[family.plain.name])

    def _end_idle(
        self,
        family: FlowTables,
        table: HashTable,
        keys: Records,
        values: Records,
        live: Mask,
        found: Swept,
    ) -> Iterator[None]:
        """Delete idle flows among these entries, and clear their places in `live`."""
        limits = flows.timeouts(self._tables.config.records[0])
        tick = current_tick()
        idle = np.flatnonzero(flows.expired(values, limits, tick))
        for start in range(0, len(idle), STEP_ENTRIES):
            part = idle[start : start + STEP_ENTRIES]
            picked = flows.take(keys, part), flows.take(values, part)
            gone = self._end_dead(family, table, *picked, limits, tick, found)
            live[part[gone]] = False
            yield None

    def _end_dead(
        self,
        family: FlowTables,
        table: HashTable,
        keys: Records,
        values: Records,
        limits: npt.NDArray[np.int64],
        tick: int,
        found: Swept,
    ) -> Mask:
        """End those of these idle entries whose partner is idle or gone; returns which."""
        sides = values["state"] == consts.FLOW_SIDE
        partners = flows.pair_keys(keys, values)
        partners[sides] = flows.side_owners(keys[sides], values[sides])
        where, raw = family.find(partners)
        pairs = np.frombuffer(b"".join(raw), values.dtype)
        there = np.array([place is not None for place in where])
        paired = there & flows.are_pairs(pairs, keys, values)
        alive = (paired & ~flows.expired(pairs, limits, tick)) | (sides & there)
        gone = np.zeros(len(keys), bool)
        ended: list[Entry] = []
        raw_keys, raw_values = pieces(keys), pieces(values)
        raw_partners = pieces(partners)
        for i in np.flatnonzero(~alive).tolist():
            if not family.end(table, raw_keys[i], raw_values[i]):
                # It moved in the meantime, or went with its partner a moment ago.
                gone[i] = table.get(raw_keys[i]) is None
                continue
            gone[i] = True
            ended.append((raw_keys[i], raw_values[i]))
            place = where[i]
            if place and paired[i] and family.end(place, raw_partners[i], raw[i]):
                ended.append((raw_partners[i], raw[i]))
        found.ended += len(ended)
        family.count(ended)
        return gone


def _note(values: Records, found: Swept) -> None:
    """What these entries, which live on, still refer to."""
    found.services[values["service"][values["service"] < len(found.services)]] = True
    backends = values["backend"] & consts.BACKEND_ID_MASK
    found.backends[backends[backends < len(found.backends)]] = True


def _note_said(keys: Records, values: Records, seen: dict[str, bool], overflow: bool) -> None:
    """Which of the kinds in `_SAID` there are. `overflow`: TCP here is what did not fit."""
    direct = values["flags"] & consts.FLOW_DIRECT != 0
    # Mere notes of direct conversations change no packet, so nobody need look for them then.
    seen["direct"] |= bool((direct & ~flows.is_reply(values)).any())
    if overflow:
        tcp = keys["proto"] == consts.IPPROTO_TCP
        # A note says of its tuple what it is.
        noted = tcp & direct & flows.is_reply(values)
        noted &= values["client_port"] == keys["dport"]
        seen["notes"] |= bool(noted.any())
        seen["overflowed"] |= bool((tcp & ~noted).any())
