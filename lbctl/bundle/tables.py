"""Contents of maps for people and programs: records as dictionaries, addresses as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final

import numpy as np

from ebpf.instance import Instance
from ebpf.maps import ArrayMap, HashMap, Map, PerCpuArray, Records
from ebpf.maps.declared import USES, Buckets, Power, Table
from lbctl.addresses import format_address
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES

MOST_ENTRIES: Final = 20_000  # of one map
# What hashes are keyed with: who knows it can make tuples that share a bucket.
_UNSAID: Final = ("pad", "secret", "random")
# Of each flow's client something is left in these, or packets are.
_OF_CLIENTS: Final = frozenset(
    name
    for name, use in USES.items()
    if use.filled
    or isinstance(use.size, Buckets | Power)
    or name in ("stash", "stash_buckets", "flow_events")
)


def names(*, of_clients: bool) -> list[str]:
    """The maps there are, with or without those that tell who called what."""
    return [name for name in USES if of_clients or name not in _OF_CLIENTS]


def contents(instance: Instance, name: str) -> dict[str, object]:
    """What a map holds: its first entries, and how many more there are. Of arrays what is not zero,
    of a table in buckets what it says."""
    table = instance.map(name)
    entries = _entries(table)
    shown = [make() for make in islice(entries, MOST_ENTRIES)]
    more = sum(1 for _ in entries)
    return {
        "name": name,
        "kind": table.type,
        "capacity": table.max_entries,
        "entries": shown,
        "not_shown": more,
    }


# An entry, made when it is asked for: those that are only counted need not be.
_Entry = Callable[[], dict[str, object]]


def _entries(table: Map) -> Iterator[_Entry]:
    if isinstance(table, HashMap):
        for keys, values in table.batches():
            for key, value in zip(keys, values, strict=True):
                yield partial(_of_hash, key, value)
    elif isinstance(table, ArrayMap):
        in_buckets = isinstance(USES[table.name].size, Table)
        yield from _of_buckets(table) if in_buckets else _of_array(table.records)
    elif isinstance(table, PerCpuArray) and table.spec.value.dtype.names is None:
        # Of records each CPU has its own in hand: nothing to add up, nothing to see.
        yield from _of_array(table.read_sum())


def _of_hash(key: object, value: object) -> dict[str, object]:
    return {"key": plain(key), "value": plain(value)}


def _of_array(records: Records) -> Iterator[_Entry]:
    rows = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)
    for index in np.flatnonzero(rows.any(axis=1)).tolist():
        yield partial(_of_index, records, index)


def _of_index(records: Records, index: int) -> dict[str, object]:
    return {"index": index, "value": plain(records[index])}


def _of_buckets(table: ArrayMap) -> Iterator[_Entry]:
    """Frontends, then endpoints, which say how many backends have them."""
    frontends = Frontends(table)
    entries, held = frontends.read_part(slice(0, frontends.places))
    columns = entries.keys, entries.services.tolist(), entries.flags.tolist()
    for key, service, flags in zip(*columns, strict=True):
        yield partial(_of_key, key.tobytes(), service=service, flags=flags)
    for words, count in zip(held.keys, held.counts.tolist(), strict=True):
        yield partial(_of_key, words.tobytes(), backends=count)


def _of_key(key: bytes, **value: int) -> dict[str, object]:
    port = int.from_bytes(key[ADDRESS_BYTES:IDENTITY_BYTES], "big")
    addr, proto = format_address(key[:ADDRESS_BYTES]), key[IDENTITY_BYTES]
    return {"key": {"addr": addr, "port": port, "proto": proto}, "value": value}


def plain(value: object) -> object:
    """A record, field by field."""
    if isinstance(value, np.void) and value.dtype.names:
        if value.dtype.names == ("w",) and value.dtype.itemsize == ADDRESS_BYTES:
            return format_address(value.tobytes())
        return {name: plain(value[name]) for name in value.dtype.names if name not in _UNSAID}
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value
