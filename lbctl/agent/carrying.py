"""Flows that an earlier version kept in other maps go on as flows of today's."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import structlog

from ebpf.flowtable import FlowTable
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.maps import HashMap
from lbctl.datapath import former
from lbctl.datapath.tables import Records

_TICK_NANOSECONDS_SHIFT = 30


Entries = tuple[Records, Records]


def count(pin_dir: Path) -> int:
    """For how many flows of a family there has to be room."""
    if not (pin_dir / "meta").exists():
        return 0
    with Instance.open(pin_dir) as before:
        there = set(before.map_names())
        entries = [
            sum(
                len(keys) for name in names if name in there for keys, _ in _entries(before, [name])
            )
            for names in former.TABLES.values()
        ]
        return max(entries) // 2


class Carrying:
    """Of one instance. Nothing is to do where no earlier version left anything."""

    def __init__(self, bundle: Bundle, instance: Instance) -> None:
        self._instance = instance
        there = set(instance.map_names()) - bundle.maps.keys()
        self._tables = {
            family: [name for name in names if name in there]
            for family, names in former.TABLES.items()
        }
        self._known: dict[str, set[bytes]] = {family: set() for family in former.TABLES}

    @property
    def expected(self) -> bool:
        """Whether an earlier version left maps with flows."""
        return any(self._tables.values())

    def carry(self) -> int:
        """Open all flows that have come since the last call. Done before programs of this version
        are put in place, and again when the others are gone."""
        opened, there = 0, set(self._instance.map_names())
        for table in self._instance.flow_tables:
            names = [name for name in self._tables[table.family] if name in there]
            if names:
                opened += self._carry(table, _entries(self._instance, names))
        if opened:
            structlog.get_logger().info("flows of an earlier version continue", flows=opened)
        return opened

    def _carry(self, table: FlowTable, entries: list[Entries]) -> int:
        config = self._instance.config.records[0]
        ports = int(config["port_max"]) + 1, int(config["node_port_max"])
        tick = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> _TICK_NANOSECONDS_SHIFT
        rings = former.rings(entries, ports, tick)
        known = self._known[table.family]
        tuples = _tuples(rings)
        fresh = np.array([key not in known for key in tuples], bool)
        known.update(tuples)
        return table.open(rings[fresh])


def _entries(instance: Instance, names: Iterable[str]) -> list[Entries]:
    """Keys and values of these maps."""
    maps = [instance.map(name) for name in names]
    return [found.read_all() for found in maps if isinstance(found, HashMap)]


def _tuples(rings: Records) -> list[bytes]:
    """Of the forward cells."""
    names = ["src", "dst", "sport", "dport", "proto"]
    columns = [np.ascontiguousarray(rings[name][:, 0]).view(np.uint8) for name in names]
    raw = [column.reshape(len(rings), -1) for column in columns]
    return [row.tobytes() for row in np.concatenate(raw, axis=1)]
