"""A flow table without a kernel, for tests of the control plane: cells in an array of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebpf.flowtable import CELL, Rooms
from lbctl.addresses import parse_address
from lbctl.datapath import clock, consts
from lbctl.datapath.tables import Records


@dataclass(frozen=True, slots=True)
class Ended:
    """A request to end a cell's flow that was granted."""

    place: int
    generation: int
    why: int


class FakeFlows:
    """What has these tables."""

    def __init__(self, flow_tables: Sequence[FakeFlowTable]) -> None:
        self.flow_tables = flow_tables


class FakeFlowTable:
    """In the shape of `ebpf.flowtable.FlowTable`."""

    def __init__(self, family: str = "4", cells: int = 4096) -> None:
        self.family = family
        self.cells: Records = np.zeros(cells, CELL)
        self.cells["place"] = np.arange(cells)
        self.ended: list[Ended] = []
        self.gave_way = self.found_none = 0
        self._generation = 0

    def snapshots(self, step: int, least: int, *, tuples: bool = True) -> Iterator[Records]:
        for start in range(0, len(self.cells), step):
            part = self.cells[start : start + step]
            yield part[part["state"] >= least].copy()

    def at(self, places: Any, *, tuples: bool = True) -> Records:
        found: Records = self.cells[places].copy()
        return found

    def rooms(self) -> Rooms:
        used = int((self.cells["state"] != consts.STATE_FREE).sum())
        return Rooms(used, len(self.cells))

    def evicted(self) -> int:
        return self.gave_way

    def refused(self) -> int:
        return self.found_none

    def end(self, places: Any, generations: Any, why: int) -> int:
        """As the program does: whoever comes first ends the whole ring."""
        done = 0
        for place, generation in zip(map(int, places), map(int, generations), strict=True):
            cell = self.cells[place]
            if cell["state"] == consts.STATE_FREE or cell["generation"] != generation:
                continue
            self.ended.append(Ended(place, generation, why))
            done += 1
            if cell["state"] == consts.STATE_BUSY:  # no flow yet: it alone
                cell["state"] = consts.STATE_FREE
            while cell["state"] != consts.STATE_FREE and cell["generation"] == generation:
                cell["state"] = consts.STATE_FREE
                cell = self.cells[int(cell["next"])]
        return done

    def open(self, *cells: dict[str, Any], at: int | None = None) -> list[int]:
        """A ring of cells with these fields; returns their places."""
        free = np.flatnonzero(self.cells["state"] == consts.STATE_FREE)
        first = int(free[0]) if at is None else at
        places = [int(p) for p in free[free >= first][: len(cells)]]
        self._generation += 1
        for number, (place, fields) in enumerate(zip(places, cells, strict=True)):
            cell = self.cells[place]
            cell["generation"] = self._generation
            cell["next"] = places[(number + 1) % len(places)]
            for name, value in fields.items():
                if name in ("src", "dst", "addr"):
                    self.cells[name][place] = np.frombuffer(parse_address(value), np.uint8)
                else:
                    cell[name] = value
        return places

    def add_flow(
        self,
        proto: int,
        client: tuple[str, int],
        address: tuple[str, int],
        backend: tuple[str, int],
        /,
        *,
        seen_as: int = 0,
        kind: int = 0,
        reply: dict[str, Any] | None = None,
        **fields: Any,
    ) -> list[int]:
        """A flow as the programs open it; `reply` are fields that differ there."""
        htons = socket.htons
        common = {
            "proto": proto,
            "state": consts.STATE_ESTABLISHED,
            "service": 1,
            "backend": 1,
            "seen": clock.current_beat(),
            "opened": clock.current_beat(),
            "packets": 11,
            "bytes": 1100,
        } | fields
        seen_port = htons(seen_as or client[1])
        forward = common | {
            "src": client[0],
            "sport": htons(client[1]),
            "dst": address[0],
            "dport": htons(address[1]),
            "addr": backend[0],
            "port": htons(backend[1]),
            "client_port": seen_port,
            "kind": kind,
        }
        back = {
            **common,
            "src": backend[0],
            "sport": htons(backend[1]),
            "dst": client[0],
            "dport": seen_port,
            "addr": address[0],
            "port": htons(address[1]),
            "client_port": htons(client[1]),
            "kind": kind | consts.CELL_REPLY,
            "packets": 10,
            "bytes": 5000,
            "flags": consts.CELL_REPLIED,
        }
        return self.open(forward, back | (reply or {}))
