"""Ending the flows of some backends: a walk over all of them, in short steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lbctl.addresses import FAMILIES
from lbctl.datapath import consts, flows
from lbctl.datapath.flows import STEP_ENTRIES, Mask
from lbctl.datapath.tables import HashTable, Records, Tables
from lbctl.reconcile.flowtables import Entry, FlowTables, pieces

_TRIES = 8  # for an entry that packets change while it is looked at


def end_flows(tables: Tables, references: set[int]) -> Iterator[None]:
    """Deletes every entry whose backend is one of `references` (id and generation), of both
    directions: the client's next packet finds no flow. Conversations straight to the same address
    are nobody's but the ends'."""
    wanted = np.array(sorted(references), np.uint32)
    for family in (FlowTables(tables, family) for family in FAMILIES):
        for table in (family.lru, family.plain):
            for keys, values in table.batches():
                for start in range(0, len(keys), STEP_ENTRIES * 16):
                    part = slice(start, start + STEP_ENTRIES * 16)
                    _end(family, table, keys[part], values[part], wanted)
                    yield None


def _end(
    family: FlowTables, table: HashTable, keys: Records, values: Records, wanted: Records
) -> None:
    places = np.flatnonzero(_meant(values, wanted))
    ended: list[Entry] = []
    for key in pieces(flows.take(keys, places)):
        for _ in range(_TRIES):
            value = table.get(key)
            if value is None or not _meant(np.frombuffer(value, values.dtype), wanted)[0]:
                break  # it ended, and another may have its tuple
            if family.end(table, key, value):
                ended.append((key, value))
                break
    if ended:
        family.count(ended)


def _meant(values: Records, wanted: Records) -> Mask:
    found: Mask = np.isin(values["backend"], wanted) & (values["flags"] & consts.FLOW_DIRECT == 0)
    return found
