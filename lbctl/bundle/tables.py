"""Contents of maps for people and programs: records as dictionaries, addresses as text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np

from ebpf.instance import Instance
from ebpf.maps import ArrayMap, HashMap, Map, PerCpuArray
from lbctl.addresses import format_address

MOST_ENTRIES: Final = 20_000  # of one map
_ADDRESS_BYTES = 16


def contents(instance: Instance, name: str) -> dict[str, object]:
    """What a map holds: its first entries, and how many there are. Of arrays what is not zero."""
    table = instance.map(name)
    entries = _entries(table)
    shown = list(islice(entries, MOST_ENTRIES))
    more = sum(1 for _ in entries)
    return {
        "name": name,
        "kind": table.type,
        "capacity": table.max_entries,
        "entries": shown,
        "not_shown": more,
    }


def _entries(table: Map) -> Iterator[dict[str, object]]:
    if isinstance(table, HashMap):
        for keys, values in table.batches():
            for key, value in zip(keys, values, strict=True):
                yield {"key": plain(key), "value": plain(value)}
    elif isinstance(table, ArrayMap):
        yield from _of_array(table.records)
    elif isinstance(table, PerCpuArray) and table.spec.value.dtype.names is None:
        # Of records each CPU has its own in hand: nothing to add up, nothing to see.
        yield from _of_array(table.read_sum())


def _of_array(records: Any) -> Iterator[dict[str, object]]:
    rows = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)
    for index in np.flatnonzero(rows.any(axis=1)).tolist():
        yield {"index": index, "value": plain(records[index])}


def plain(value: Any) -> object:
    """A record, field by field."""
    if isinstance(value, np.void) and value.dtype.names:
        if value.dtype.names == ("w",) and value.dtype.itemsize == _ADDRESS_BYTES:
            return format_address(value.tobytes())
        return {name: plain(value[name]) for name in value.dtype.names if name != "pad"}
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
