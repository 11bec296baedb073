"""What an instance's maps hold, byte for byte, to be compared before and after."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebpf.instance import Instance
from ebpf.maps import ArrayMap, HashMap


def content_of(table: ArrayMap, name: str) -> bytes:
    """Of an array. A copy of its records would have anything at all in the gaps between fields."""
    held = bytearray(table.records.tobytes())
    if name == "config":
        np.frombuffer(held, table.records.dtype)["agent_beat"] = 0
    return bytes(held)


def contents(instance: Instance) -> dict[str, Any]:
    """By name. The per-CPU counters of packets are the programs' own, and left out; so is the
    agent's beat, which tells of time alone."""
    found: dict[str, Any] = {}
    for name in instance.map_names():
        table = instance.map(name)
        if isinstance(table, ArrayMap):
            found[name] = content_of(table, name)
        elif isinstance(table, HashMap):
            found[name] = dict(table.items())
    return found
