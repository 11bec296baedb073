"""The agent's audit: what somebody breaks in the maps is found, named and put right, in steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.inspect import names, services
from lbctl.model.records import Balancing
from lbctl.reconcile import audit
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import FakeTables
from tests.support.map_faults import (
    BACKENDS,
    FAULTS,
    change_policy,
    double_backend,
    empty_set,
    guarded,
    hide_frontends,
    lose_endpoint,
    lose_frontend,
    lose_marker,
    lose_name,
    move_backend,
    usual,
)
from tests.support.reconciling import NODE, Clock, balanced, objects, update


class World(NamedTuple):
    """Maps that an agent filled, and the agent's own view of them."""

    tables: FakeTables
    reconciler: Reconciler

    def run(self) -> bool:
        """One pass; whether anything had to be planned."""
        wrong = False
        for _ in range(10_000):
            ended, todo = self.reconciler.audit.step(self.reconciler)
            if todo:
                wrong = True
                self.reconciler.apply(complete=True)
            if ended:
                return wrong
        raise AssertionError("a pass never ends")

    @property
    def counts(self) -> dict[str, int]:
        return self.reconciler.audit.corrections.said().corrections


def world() -> World:
    tables = FakeTables()
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(*usual()))
    reconciler.apply(complete=True)
    made = World(tables, reconciler)
    made.run()
    return made


def contents(tables: FakeTables) -> dict[str, object]:
    return tables.snapshot()


def test_nothing_is_found_and_nothing_written_where_nothing_is_wrong() -> None:
    made = world()
    before, writes = contents(made.tables), made.tables.hash_writes()
    for _ in range(3):
        assert not made.run()
    assert made.counts == {}
    assert contents(made.tables) == before
    assert made.tables.hash_writes() == writes


# What comes with others: of all that is hidden, what is no frontend; and backends whose addresses
# were changed are of endpoints that have other entries.
BESIDES: dict[Callable[[FakeTables], None], set[str]] = {
    hide_frontends: {"stray frontend", "endpoint entry"},
    move_backend: {"endpoint entry"},
    double_backend: {"endpoint entry"},
}


def served(tables: FakeTables) -> dict[str, object]:
    """What packets see: by address, the endpoints it leads to."""
    found: dict[str, object] = {}
    for name in names.all_names(tables.names).values():
        for row in services.show(tables, name.text):
            backends = sorted((b.endpoint, b.serving, b.here, b.sets) for b in row.backends)
            for address in row.addresses:
                found[f"{row.name.text} {address}"] = (
                    backends,
                    row.internal_policy,
                    row.without_backends,
                    row.source_ranges,
                )
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_named_and_put_right(fault: Callable[[FakeTables], None]) -> None:
    made = world()
    before, endpoints = served(made.tables), made.tables.endpoint_entries()
    since = made.tables.backends.records["since"].copy()
    fault(made.tables)
    made.run()
    assert (made.tables.backends.records["since"] == since).all()
    assert made.counts.keys() - BESIDES.get(fault, set()) == {FAULTS[fault]}
    assert served(made.tables) == before
    # A record that rests until no flow has it keeps what it was made to say.
    assert made.tables.endpoint_entries() >= endpoints
    said, counts = made.reconciler.audit.corrections.said().lately, made.counts
    assert FAULTS[fault] in said[0]
    for _ in range(2):
        assert not made.run()
    assert made.counts == counts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(list(FAULTS)), min_size=1, max_size=5, unique=True))
def test_several_at_once(faults: list[Callable[[FakeTables], None]]) -> None:
    made = world()
    before = served(made.tables)
    # What is hidden is not found by others.
    for fault in sorted(faults, key=lambda fault: fault is hide_frontends):
        fault(made.tables)
    for _ in range(4):
        made.run()
    assert served(made.tables) == before
    assert not made.run()


def test_changes_meanwhile_are_no_faults() -> None:
    """Each step of a pass meets another change of what it is about to look at."""
    made = world()
    for number in range(60):
        made.reconciler.audit.step(made.reconciler)
        count = number % 3 + 1
        made.reconciler.take(
            update(
                objects("web", "172.30.0.1", BACKENDS[:count]),
                guarded("lb", f"192.0.2.{80 + number % 2}"),
                gone=["dns"] if number % 2 else [],
            )
        )
        if not number % 2:
            made.reconciler.take(update(objects("dns", "172.30.0.2", BACKENDS[:2], port=53)))
        made.reconciler.apply(complete=True)
    made.run()
    assert made.counts == {}


def test_a_step_is_a_part_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "STEP_SECONDS", 0.0)
    made = world()
    steps = 1
    while not made.reconciler.audit.step(made.reconciler)[0]:
        steps += 1
    assert steps > len(made.tables.backends.records) // 2048 + 4


def test_shares_that_grow_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    made = world()
    slow = Balancing(slow_start=30.0)
    for backends in (BACKENDS[:1], BACKENDS):
        made.reconciler.take(update(balanced(objects("slow", "172.30.0.7", backends), slow)))
        made.reconciler.apply(complete=True)
    made.run()
    seen = set()
    while (due := made.reconciler.warming_due()) is not None:
        clock.now = max(clock.now, due) + 1
        made.reconciler.warm(clock.now)
        assert not made.run()
        seen.add(made.tables.slots.records["share"].tobytes())
    assert len(seen) > 10
    assert made.counts == {}


def test_slow_starts_begin_when_they_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    made = world()
    slow = Balancing(slow_start=30.0)
    for backends in (BACKENDS[:1], BACKENDS):
        made.reconciler.take(update(balanced(objects("slow", "172.30.0.7", backends), slow)))
        made.reconciler.apply(complete=True)
    made.run()
    since = made.tables.backends.records["since"]
    before = since.copy()
    assert np.count_nonzero(before) == 2
    since[before != 0] = 1
    made.run()
    assert (since == before).all()
    assert made.counts == {"endpoints": 1}
    # Another one's, by a change of ours, is no fault.
    made.reconciler.take(update(balanced(objects("slow", "172.30.0.7", ["10.0.0.8"]), slow)))
    made.reconciler.apply(complete=True)
    made.run()
    assert made.counts == {"endpoints": 1}


def test_repairs_go_to_maps_that_are_being_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world()
    before = served(made.tables)
    former = copy.deepcopy(made.tables)
    monkeypatch.setattr(made.tables, "former", lambda: former)
    for fault in (lose_frontend, lose_marker, lose_endpoint, lose_name, empty_set, change_policy):
        for tables in (made.tables, former):
            fault(tables)
    made.run()
    assert served(made.tables) == before
    assert served(former) == before
    assert former.endpoint_entries() == made.tables.endpoint_entries()
