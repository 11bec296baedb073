"""The table of frontends, held against who owns which address and which endpoints there are.

Each piece of work is a fraction of a millisecond; between two of them there may be changes, and
other tables in place of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from ebpf.maps.buckets import Words
from lbctl.addresses import format_endpoint
from lbctl.datapath import consts
from lbctl.datapath.frontends import Entries, Frontends
from lbctl.datapath.records import ADDRESS_BYTES
from lbctl.datapath.tables import Tables
from lbctl.plan.changes import Plan
from lbctl.plan.planner import Planner
from lbctl.program import writes
from lbctl.reconcile.corrections import Corrections, pieces

_OWNED: Final = 64
_RECORDS: Final = 512
_PLACES: Final = 512


def check_addresses(planner: Planner, tables: Tables, corrections: Corrections) -> Iterator[None]:
    """Put right what differs: what is missing, then what nobody asks for."""
    for keys in pieces(planner.claims.keys(), _OWNED):
        _check_owned(planner, tables, keys, corrections)
        yield
    counted = np.zeros(Frontends(tables.frontends).places, np.uint32)
    for start in range(0, len(tables.backends.records), _RECORDS):
        frontends = Frontends(tables.frontends)
        if frontends.places != len(counted):  # it has grown, which moves everything
            return
        missing = frontends.count(tables.backends.records[start : start + _RECORDS], counted)
        yield from _recount(missing, tables, corrections)
        yield
    for start in range(0, len(counted), _PLACES):
        frontends, part = Frontends(tables.frontends), slice(start, start + _PLACES)
        if frontends.places != len(counted):
            return
        if lost := frontends.tidy(part):
            corrections.note("stray frontend", ["places where nobody looks"], lost)
        entries, held = frontends.read_part(part)
        _remove_strays(planner, tables, entries, corrections)
        # Those of endpoints that came or went meanwhile differ too.
        doubtful = held.keys[held.counts != counted[held.places]]
        yield from _recount(doubtful, tables, corrections)
        yield


def _check_owned(
    planner: Planner, tables: Tables, keys: Sequence[bytes], corrections: Corrections
) -> None:
    wanted = [(key, *owner) for key in keys if (owner := planner.claims.owner_and_flags(key))]
    found = Frontends(tables.frontends).get_many([key for key, _, _ in wanted])
    wrong = [entry for entry, says in zip(wanted, found, strict=True) if entry[1:] != says]
    if wrong:
        writes.apply(Plan(frontends=wrong), tables)
        corrections.note("frontend", [_place(key) for key, _, _ in wrong])


def _remove_strays(
    planner: Planner, tables: Tables, entries: Entries, corrections: Corrections
) -> None:
    strays = [key for key in map(bytes, entries.keys) if planner.claims.owner(key) is None]
    if strays:
        writes.apply(Plan(frontends_gone=strays), tables)
        corrections.note("stray frontend", [_place(key) for key in strays])


def _recount(doubtful: Words, tables: Tables, corrections: Corrections) -> Iterator[None]:
    """One at a time, since all backends are looked at for each."""
    for key in doubtful:
        if writes.recount_endpoint(key, tables):
            corrections.note("endpoint entry", [_place(key.tobytes())])
        yield


def _place(key: bytes) -> str:
    port = int.from_bytes(key[ADDRESS_BYTES : ADDRESS_BYTES + 2], "big")
    protocol = key[ADDRESS_BYTES + 2]
    where = format_endpoint(key[:ADDRESS_BYTES], port)
    if protocol == consts.FRONTEND_ENDPOINT_ADDRESS:
        return f"{where} (an endpoint's address)"
    if protocol:
        return f"{where} of protocol {protocol}"
    return where if port else f"{where} (marker)"
