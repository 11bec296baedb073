"""What an instance's maps hold, byte for byte, to be compared before and after."""

from __future__ import annotations

from typing import Any

from ebpf.instance import Instance
from ebpf.maps import ArrayMap, HashMap


def contents(instance: Instance) -> dict[str, Any]:
    """By name. The per-CPU counters of packets are the programs' own, and left out; so is the
    agent's beat, which tells of time alone."""
    found: dict[str, Any] = {}
    for name in instance.map_names():
        table = instance.map(name)
        if isinstance(table, ArrayMap):
            records = table.records.copy()
            if name == "config":
                records["agent_beat"] = 0
            found[name] = records.tobytes()
        elif isinstance(table, HashMap):
            found[name] = dict(table.items())
    return found
