"""Carrying out a plan: stores into the mapped arrays and map updates, in an order that is safe at
every step.

A packet that is under way may have read a word, a slot or a frontend just before it changed. So a
thing is complete before anything points to it, and loses what it had only after nothing does; its
place is reused only after a grace period (lbctl/plan/alloc.py).
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from ebpf.maps.buckets import Words
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.ranges import range_keys
from lbctl.datapath.records import IDENTITY_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.regions import table_places
from lbctl.datapath.tables import ArrayTable, Records, Tables
from lbctl.plan.changes import Freed, Plan, Settings


def apply(plan: Plan, tables: Tables) -> None:
    """Carry out `plan`. Raises KernelError if a map update fails; what came before it is done.

    While maps are exchanged for larger ones, programs in place still go by the former ones.
    """
    for one in in_use(tables):
        for step in STEPS:
            step(plan, one)


def clear(freed: Freed, tables: Tables) -> None:
    """Clear the records of ids that nothing refers to any more.

    A backend keeps its generation, which the next one with this id must not repeat.
    """
    for one in in_use(tables):
        _clear(freed, one)


def recount_endpoint(key: Words, tables: Tables) -> bool:
    """Have its entry say how many backends have the endpoint; returns whether it did not."""
    changed = [Frontends(t.frontends).recount(key, t.backends.records) for t in in_use(tables)]
    return any(changed)


def in_use(tables: Tables) -> Sequence[Tables]:
    """These, and before them those that programs in place still go by."""
    former = tables.former()
    return (tables,) if former is None else (former, tables)


def _clear(freed: Freed, tables: Tables) -> None:
    if freed.backends:
        records = tables.backends.records
        Frontends(tables.frontends).release(records[freed.backends])
        blank = np.zeros(len(freed.backends), records.dtype)
        blank["generation"] = records["generation"][freed.backends]
        records[freed.backends] = blank
    if freed.services:
        tables.services.records[freed.services] = np.zeros((), tables.services.records.dtype)
        counters = tables.service_counters.records
        counters[freed.services] = np.zeros((), counters.dtype)
        keys = np.zeros(len(freed.services), tables.names.spec.key.dtype)
        keys["service"] = freed.services
        tables.names.delete_many(keys)


def put_names(plan: Plan, tables: Tables) -> None:
    """Service ids get their names, so that they can be read back whatever comes next."""
    if not plan.names:
        return
    names = tables.names
    keys = np.zeros(len(plan.names), names.spec.key.dtype)
    values = np.zeros(len(plan.names), names.spec.value.dtype)
    keys["service"] = [service for service, _ in plan.names]
    values["text"] = [text.encode() for _, text in plan.names]
    names.put_many(keys, values)


def set_up_services(plan: Plan, tables: Tables) -> None:
    """Settings of services that no address leads to yet."""
    _settings(plan.new_settings, tables.services)


def write_backends(plan: Plan, tables: Tables) -> None:
    """New backends, and bits that others get; none of the new ones is in a set yet."""
    ids, records = plan.backend_ids, tables.backends.records
    if ids:
        new = np.zeros(len(ids), records.dtype)
        columns = address_columns(records.dtype, "addr", "port")
        rows_as_bytes(new)[:, columns] = _matrix(plan.backend_identities, IDENTITY_BYTES)
        new["flags"] = plan.backend_flags
        new["service"] = plan.backend_services
        new["weight"] = plan.backend_weights
        new["since"] = plan.backend_since
        new["generation"] = records["generation"][ids] + 1  # a u8, and meant to wrap
        # Before a packet can be for them, or come from them.
        Frontends(tables.frontends).hold(new)
        records[ids] = new
    if plan.reweighted:
        ids, weights = (list(column) for column in zip(*plan.reweighted, strict=True))
        records["weight"][ids] = weights
    for number, tick in plan.begun:
        records["since"][number] = tick
    _set_flags(plan.raised, tables.backends)


def write_slots(plan: Plan, tables: Tables) -> None:
    """Regions that no word names yet, and shares within some that are named: the endpoints of a
    region are always the same."""
    records = tables.slots.records
    if plan.slot_indices:
        new = np.zeros(len(plan.slot_indices), records.dtype)
        new["backend"] = plan.slot_backends
        records[plan.slot_indices] = new
    for base, shape in plan.shapes:
        part = slice(base, base + len(shape.shares))
        changed = records[part].copy()
        changed["share"], changed["other"] = shape
        records[part] = changed


def write_tables(plan: Plan, tables: Tables) -> None:
    """Place by place: each leads to an endpoint that it may lead to, before and after."""
    places = table_places(tables.hash_tables.records)
    for part in plan.tables:
        places[part.places] = part.backends


def switch(plan: Plan, tables: Tables) -> None:
    """Each set in one store; then what else differs about its service."""
    services = tables.services
    for service, field, word in plan.words:
        services.store_word(service, field, word)
    _settings(plan.settings, tables.services)


def put_ranges(plan: Plan, tables: Tables) -> None:
    """Who may call comes before the address that asks."""
    if plan.ranges:
        keys = range_keys(plan.ranges, tables.source_ranges)
        tables.source_ranges.put_many(keys, np.ones(len(keys), np.uint32))


def delete_ranges(plan: Plan, tables: Tables) -> None:
    """Clients that may no longer call."""
    if plan.ranges_gone:
        tables.source_ranges.delete_many(range_keys(plan.ranges_gone, tables.source_ranges))


def put_frontends(plan: Plan, tables: Tables) -> None:
    """Addresses lead to services that are complete by now."""
    if plan.frontends:
        Frontends(tables.frontends).put(plan.frontends)


def delete_frontends(plan: Plan, tables: Tables) -> None:
    """Addresses go while what they led to is still whole."""
    if plan.frontends_gone:
        Frontends(tables.frontends).delete(plan.frontends_gone)


def empty_services(plan: Plan, tables: Tables) -> None:
    """Services that no address leads to any more."""
    for service, field, word in plan.words_emptied:
        tables.services.store_word(service, field, word)


def lower_flags(plan: Plan, tables: Tables) -> None:
    """Backends that left a set, or all: new flows no longer find them, UDP flows move on. When the
    flows of one are to end is there before it is said to be."""
    for number, tick in plan.ending:
        tables.backends.records["since"][number] = tick
    _set_flags(plan.lowered, tables.backends)


STEPS: Final[tuple[Callable[[Plan, Tables], None], ...]] = (
    put_names,
    set_up_services,
    write_backends,
    write_slots,
    write_tables,
    switch,
    put_ranges,
    put_frontends,
    delete_frontends,
    delete_ranges,
    empty_services,
    lower_flags,
)


def _settings(settings: Sequence[tuple[int, Settings]], services: ArrayTable) -> None:
    """The flags last: they say whether the others are looked at."""
    if settings:
        ids = [number for number, _ in settings]
        columns = dict(
            zip(Settings._fields, zip(*(s for _, s in settings), strict=True), strict=True)
        )
        for name in reversed(Settings._fields):
            services.records[name][ids] = columns[name]


def _set_flags(flags: Sequence[tuple[int, int]], backends: ArrayTable) -> None:
    if flags:
        ids, values = (list(column) for column in zip(*flags, strict=True))
        backends.records["flags"][ids] = values


def _matrix(pieces: list[bytes], width: int) -> Records:
    """Equally long byte strings as an (n, width) array."""
    return np.frombuffer(b"".join(pieces), np.uint8).reshape(len(pieces), width)
