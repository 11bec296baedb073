"""The table of flows of one family, for Python: what is in it, and the programs that change it.

Reading is numpy over mapped memory. Writing is not: Python has no compare-and-swap, so programs end
and open flows, given lists (bpf_src/table.c). Places are those of cell_state.link: bank and index.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from ebpf import flowlists
from ebpf.maps import Map, Records, array_of

FAMILIES = ("4", "6")
_BANKED = ("table", "control", "cells", "states")
_STEP = 2048  # cells of one snapshot: some tenths of a millisecond

Places = np.ndarray[Any, np.dtype[np.uint32]]

# One cell as both families have it. Addresses are 16 bytes, IPv4 mapped; ports in network order.
CELL = np.dtype(
    [
        ("place", "u4"),
        ("generation", "u4"),
        ("state", "u1"),
        ("kind", "u1"),
        ("proto", "u1"),
        ("flags", "u1"),
        ("moved", "?"),
        ("src", "u1", 16),
        ("dst", "u1", 16),
        ("sport", "u2"),
        ("dport", "u2"),
        ("addr", "u1", 16),
        ("port", "u2"),
        ("client_port", "u2"),
        ("next", "u4"),
        ("seen", "u4"),
        ("packets", "u4"),
        ("ack", "u4"),
        ("bytes", "u8"),
        ("opened", "u4"),
        ("backend", "u4"),
        ("service", "u4"),
    ]
)
_STATE_FIELDS = ("seen", "packets", "ack", "bytes", "backend", "service")


class Rooms(msgspec.Struct, frozen=True):
    """Cells that are used, and those there are now."""

    used: int
    cells: int


class Bank:
    """One of a table's two memories."""

    def __init__(self, maps: Mapping[str, Map], family: str, letter: str, base: int) -> None:
        self.letter = letter
        self.base = base
        self.table = array_of(maps, f"table{family}{letter}").records
        self.control = array_of(maps, f"control{family}{letter}").records
        self.cells = array_of(maps, f"cells{family}{letter}").records
        self.states = (
            array_of(maps, f"states{family}{letter}").records
            if family == "6"
            else self.cells["state"]
        )

    def used(self) -> int:
        """Cells that are claimed."""
        return int(np.count_nonzero(self.control.view(np.uint8)))


class FlowTable:
    """The table on open maps, and the programs of table.c by name (none for who only reads)."""

    def __init__(
        self,
        family: str,
        maps: Mapping[str, Map],
        enums: Mapping[str, int],
        programs: Mapping[str, int] | None = None,
    ) -> None:
        self.family = family
        self.enums = enums
        self._programs = programs or {}
        self._a = Bank(maps, family, "a", 0)
        self._b = Bank(maps, family, "b", enums["PLACE_BANK"])
        self._held = array_of(maps, f"held{family}").records
        self._live = enums["STATE_LIVE"]
        self._item = flowlists.cell_of(family)

    @property
    def phase(self) -> int:
        """enum table_phase."""
        return int(self._a.table["phase"][0])

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The banks that flows may be in: the one that new flows go to first."""
        own, other = (self._b, self._a) if own_is_b(self.phase, self.enums) else (self._a, self._b)
        resting = self.phase in (self.enums["PHASE_A"], self.enums["PHASE_B"])
        return (own,) if resting else (own, other)

    def rooms(self) -> Rooms:
        """How full the bank is that new flows go to."""
        own = self.banks[0]
        return Rooms(own.used(), len(own.cells))

    def evicted(self) -> int:
        """Flows that made room for others."""
        return sum(int(bank.table["evicted"][0]) for bank in (self._a, self._b))

    def refused(self) -> int:
        """Flows that found none."""
        return sum(int(bank.table["refused"][0]) for bank in (self._a, self._b))

    def live(self) -> Places:
        """Places of the live cells."""
        found = [self._indexes(bank, self._live, 0, len(bank.cells)) for bank in self.banks]
        return np.concatenate(
            [
                index.astype(np.uint32) | np.uint32(bank.base)
                for bank, index in zip(self.banks, found, strict=True)
            ]
        )

    def snapshots(
        self, step: int = _STEP, least: int | None = None, *, tuples: bool = True
    ) -> Iterator[Records]:
        """Copies of the cells (dtype CELL) in states from `least` on, else the live ones, of one
        stretch of the table after the other. Each cell is whole: all of one flow. Without `tuples`
        what identifies packets and is written to them is left out, and when the flow was opened:
        that is most of the work."""
        least = least or self._live
        for bank in self.banks:
            for start in range(0, len(bank.cells), step):
                index = self._indexes(bank, least, start, start + step)
                found = self._copy(bank, index, tuples)
                yield found[found["state"] >= least]

    def view(self, least: int | None = None) -> Records:
        """All snapshots as one."""
        return np.concatenate(list(self.snapshots(least=least)))

    def at(self, places: Records, *, tuples: bool = True) -> Records:
        """Copies of the cells (dtype CELL) at these places now; of one that was left for the other
        bank, the cell that it went to."""
        found = self._at(places, tuples)
        moved = np.nonzero(found["moved"])[0]
        if len(moved):
            found[moved] = self._at(found["next"][moved], tuples)
        return found

    def end(self, places: Records, generations: Records, why: int) -> int:
        """Ends the flows that these cells are of, unless somebody else did; returns how many this
        call ended. `why` is an enum end_reason. Cells that were only reserved are given back."""
        items = np.zeros(len(places), flowlists.FLOW)
        items["place"], items["generation"], items["why"] = places, generations, why
        return self._run("end_listed", items)[1]

    def open(self, rings: Records, at_once: int = 32) -> int:
        """Opens flows: a row of `rings` (dtype CELL, two dimensions) is one, its cells in the order
        of the ring; those of kind 0 behind the first are none. Who sends by the first cell is the
        client. Returns how many there was room for. `at_once`: flows that are half open meanwhile.
        """
        parts = (rings[start : start + at_once] for start in range(0, len(rings), at_once))
        return sum(self._open(part) for part in parts)

    def _open(self, rings: Records) -> int:
        count, length = rings.shape
        items = np.zeros(rings.shape, self._item)
        for name in ("port", "client_port", "kind", "flags", "state", *_STATE_FIELDS):
            items[name] = rings[name]
        for name in ("sport", "dport", "proto"):
            items["key"][name] = rings[name]
        for name in ("src", "dst"):
            items["key"][name] = self._narrow(rings[name])
        items["addr"] = self._narrow(rings["addr"])
        items["holder"] = self._narrow(rings["src"][:, 0])[:, None]
        meant = np.ones(rings.shape, bool)
        meant[:, 1:] = rings["kind"][:, 1:] != 0
        reserved = np.zeros(rings.shape, bool)
        whole = np.ones(count, bool)
        for column in range(length):
            rows = np.nonzero(meant[:, column] & whole)[0]
            items["generation"][rows, column] = items["generation"][rows, 0]
            items[rows, column], _ = self._run("reserve_listed", items[rows, column])
            found = items["place"][rows, column] < flowlists.NO_PLACES
            reserved[rows, column] = found
            whole[rows] &= found
        left = np.nonzero(reserved & ~whole[:, None])
        self.end(items["place"][left], items["generation"][left], 0)
        return self._publish(items[whole], meant[whole])

    def move(self, most: int = 1 << 16) -> Records:
        """Moves up to so many flows of the other bank to the own one, and returns their rings, for
        `carry`. Only with programs whose own bank is the one that `phase` says, all over."""
        rings = self._forward_rings(self.banks[1], most)
        moved, _ = self._run("move_listed", rings)
        return moved[moved["count"] > 0]

    def carry(self, rings: Records) -> None:
        """Ends a move, once nobody is at the old cells any more (ebpf.kernel.grace): they are free
        then, and nothing that packets wrote to them is lost."""
        self._run("carry_listed", rings)

    def abandoned(self) -> Records:
        """Rings, for `carry`, of old cells that a move of another process left."""
        bank = self.banks[1]
        moved = bank.cells["head"] & np.uint64(self.enums["HEAD_MOVED"]) != 0
        live = bank.cells["head"] & np.uint64(self.enums["STATE_MASK"]) >= self._live
        index = np.nonzero(moved & live)[0]
        rings = self._rings(bank, index)
        rings["count"] = 1
        rings["cells"]["packets"][:, 0] = bank.states["packets"][index]
        rings["cells"]["bytes"][:, 0] = bank.states["bytes"][index]
        return rings

    def _forward_rings(self, bank: Bank, most: int) -> Records:
        head = bank.cells["head"]
        state = head & np.uint64(self.enums["STATE_MASK"])
        others = self.enums["CELL_REPLY"] | self.enums["CELL_SIDE"]
        excluded = others << self.enums["HEAD_KIND_SHIFT"] | self.enums["HEAD_MOVED"]
        forward = (state >= self._live) & (head & np.uint64(excluded) == 0)
        return self._rings(bank, np.nonzero(forward)[0][:most])

    def _rings(self, bank: Bank, index: Records) -> Records:
        rings = np.zeros(len(index), flowlists.RING)
        rings["cells"]["place"][:, 0] = index | bank.base
        shift = np.uint64(self.enums["HEAD_GENERATION_SHIFT"])
        rings["generation"] = bank.cells["head"][index] >> shift
        return rings

    def _publish(self, items: Records, meant: Records) -> int:
        """The forward cells last: they make the flows."""
        opened = 0
        length = items.shape[1]
        for column in reversed(range(length)):
            rows = np.nonzero(meant[:, column])[0]
            following = np.zeros(len(items), int)
            if column + 1 < length:
                following = np.where(meant[:, column + 1], column + 1, 0)
            items["next"][rows, column] = items["place"][rows, following[rows]]
            _, opened = self._run("publish_listed", items[rows, column])
        return opened

    def _run(self, program: str, items: Records) -> tuple[Records, int]:
        """Runs a program once for each item; returns them as it left them, and its count."""
        return flowlists.run(self._programs[program + self.family], items)

    def _indexes(self, bank: Bank, least: int, start: int, stop: int) -> Records:
        state = bank.cells["head"][start:stop] & np.uint64(self.enums["STATE_MASK"])
        return start + np.nonzero(state >= least)[0]

    def _at(self, places: Records, tuples: bool) -> Records:
        out = np.zeros(len(places), CELL)
        for bank in (self._a, self._b):
            rows = np.nonzero(places & self.enums["PLACE_BANK"] == bank.base)[0]
            index = places[rows] & self.enums["PLACE_INDEX_MASK"]
            there = index < len(bank.cells)
            out[rows[there]] = self._copy(bank, index[there], tuples)
        return out

    def _copy(self, bank: Bank, index: Records, tuples: bool) -> Records:
        """Copies of these cells; of one that changed hands meanwhile all is zero."""
        out = np.zeros(len(index), CELL)
        before = bank.cells["head"][index]
        states = bank.states[index]
        if tuples:
            self._copy_tuples(bank.cells[index], out)
        head = bank.cells["head"][index]
        same = (before ^ head) >> np.uint64(self.enums["HEAD_GENERATION_SHIFT"]) == 0
        out["place"] = index | bank.base
        out["generation"] = head >> np.uint64(self.enums["HEAD_GENERATION_SHIFT"])
        out["state"] = head & np.uint64(self.enums["STATE_MASK"])
        out["kind"] = head >> np.uint64(self.enums["HEAD_KIND_SHIFT"]) & np.uint64(0xFF)
        out["proto"] = head >> np.uint64(self.enums["HEAD_PROTO_SHIFT"]) & np.uint64(0xFF)
        out["moved"] = head & np.uint64(self.enums["HEAD_MOVED"]) != 0
        out["next"] = states["link"] & np.uint32(self.enums["LINK_PLACE_MASK"])
        out["flags"] = states["link"] >> np.uint32(self.enums["LINK_FLAGS_SHIFT"])
        for name in _STATE_FIELDS:
            out[name] = states[name]
        out["bytes"] &= np.uint64(self.enums["BYTES_MASK"])
        if tuples:
            out["opened"] = self._opened(out["next"], states["bytes"], out["kind"], out["seen"])
        out[~same] = np.zeros((), CELL)
        return out

    def _copy_tuples(self, cells: Records, out: Records) -> None:
        key = cells if self.family == "6" else cells["key"]
        for name in ("src", "dst"):
            out[name] = self._widen(key[name])
        for name in ("sport", "dport"):
            out[name] = key[name]
        out["addr"] = self._widen(cells["addr"])
        out["port"], out["client_port"] = cells["port"], cells["client_port"]

    def _opened(self, following: Records, own: Records, kind: Records, seen: Records) -> Records:
        """The beat that each cell's flow was opened in: half of it is in the next cell. Of a flow
        that has one cell, it is the last such beat until it was seen (`latest_beat` in C)."""
        other = np.zeros(len(own), np.uint64)
        for bank in (self._a, self._b):
            here = following & np.uint32(self.enums["PLACE_BANK"]) == bank.base
            index = following & np.uint32(self.enums["PLACE_INDEX_MASK"])
            here &= index < len(bank.states)
            other[here] = bank.states["bytes"][index[here]]
        shift = np.uint64(self.enums["OPENED_SHIFT"])
        upper = (kind & self.enums["CELL_REPLY"] != 0) != (kind & self.enums["CELL_SIDE"] != 0)
        low, high = np.where(upper, (other, own), (own, other)) >> shift
        alone = kind & (self.enums["CELL_DSR"] | self.enums["CELL_REPLY"]) == self.enums["CELL_DSR"]
        until = seen.astype(np.uint64)
        latest = until - ((until - low) & np.uint64(0xFFFF))
        opened: Records = np.where(alone, latest, low | high << np.uint64(16))
        return opened

    def _widen(self, addresses: Records) -> Records:
        out = np.zeros((len(addresses), 16), np.uint8)
        if self.family == "6":
            out[:] = np.ascontiguousarray(addresses["w"]).view(np.uint8).reshape(-1, 16)
        else:
            out[:, 10:12] = 0xFF
            out[:, 12:] = np.ascontiguousarray(addresses).view(np.uint8).reshape(-1, 4)
        return out

    def _narrow(self, addresses: Records) -> Records:
        whole = np.ascontiguousarray(addresses)
        if self.family == "6":
            return whole
        narrow: Records = np.ascontiguousarray(whole[..., 12:]).view(np.uint32)[..., 0]
        return narrow


def maps_of(family: str) -> tuple[str, ...]:
    """Names of the maps that a family's table is in."""
    parts = ("table", "control", "cells", *(("states",) if family == "6" else ()))
    return (*(f"{part}{family}{bank}" for part in parts for bank in "ab"), f"held{family}")


def program_names(
    names: Iterable[str], phases: Mapping[str, int], enums: Mapping[str, int]
) -> dict[str, str]:
    """Which map stands for which name when programs are loaded: they call their own bank a, and
    which one that is follows from the table's phase, by family."""
    swap = {"a": "b", "b": "a"}
    taken = {}
    for name in names:
        part, family, letter = name[:-2], name[-2:-1], name[-1:]
        banked = part in _BANKED and letter in swap
        swapped = banked and own_is_b(phases.get(family, 0), enums)
        taken[name] = f"{part}{family}{swap[letter]}" if swapped else name
    return taken


def set_size(table: Records, buckets: int) -> None:
    """How large a bank is, in its record, and what follows from that: the cells that one source may
    hold and be like any other, a sixteenth. With twice as many it gets nothing of the last quarter,
    see bpf_src/evict.h."""
    table["buckets"][0], table["share"][0] = buckets, buckets * 8 // 16


def own_is_b(phase: int, enums: Mapping[str, int]) -> bool:
    """Whether new flows go to bank b."""
    return phase in (enums["PHASE_A_LEFT"], enums["PHASE_B"], enums["PHASE_B_LOOKS"])


def prepare(maps: Mapping[str, Map], enums: Mapping[str, int]) -> None:
    """Makes new tables usable: secrets of their own, and how large they are. What is there stays;
    done before a program looks."""
    for family in FAMILIES:
        if f"table{family}a" not in maps:
            continue
        a, b = (array_of(maps, f"table{family}{letter}").records for letter in "ab")
        if not a["secret"][0].any():
            a["secret"][0] = _numbers(len(a["secret"][0]))
            set_size(a, array_of(maps, f"control{family}a").max_entries)
            b["secret"][0] = a["secret"][0]
            b["bank"][0] = enums["PLACE_BANK"]
    if "cpus" not in maps:
        return
    cpus = array_of(maps, "cpus").records
    if not cpus["random"].any():
        cpus["random"] = _numbers(len(cpus))


def _numbers(count: int) -> Records:
    return np.frombuffer(secrets.token_bytes(8 * count), np.uint64)
