"""The choice of endpoints between changes: shares that grow, tables without room."""

import time

import pytest

from lbctl.model.records import Balancing
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import NODE, Clock, balanced, objects, update


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def tables(clock: Clock) -> FakeTables:
    return FakeTables()


def test_shares_of_new_endpoints_grow_without_a_change(tables: FakeTables, clock: Clock) -> None:
    """By stores alone, and for as long as it takes."""
    slow = Balancing(slow_start=30.0)
    reconciler = Reconciler(tables, NODE)
    for backends in (["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]):
        reconciler.take(update(balanced(objects("web", "10.96.0.1", backends), slow)))
        reconciler.apply(complete=True)
    assert reconciler.warming_due() is not None
    writes, shares = tables.hash_writes(), set()
    for _ in range(100):
        due = reconciler.warming_due()
        if due is None:
            break
        clock.now = max(clock.now, due) + 1
        reconciler.warm(clock.now)
        shares.add(int(tables.slots.records["share"].max()))
    assert reconciler.warming_due() is None
    assert len(shares) > 10
    assert not tables.slots.records["share"].any()
    assert tables.hash_writes() == writes


def test_a_table_without_room_is_a_warning(tables: FakeTables) -> None:
    reconciler = Reconciler(tables, NODE)
    pool = reconciler.planner.tables.regions
    pool.take(pool.capacity, 0.0)
    wanted = balanced(objects("web", "10.96.0.1", ["10.0.0.1"]), Balancing(algorithm="maglev"))
    reconciler.take(update(wanted))
    reconciler.apply(complete=True)
    (said,) = reconciler.warnings()
    assert said.startswith("default/web chooses endpoints at random")
    assert "--endpoints" in said
    assert "default/web" in reconciler.troubles()
    reconciler.take(update(balanced(objects("web", "10.96.0.1", ["10.0.0.1"]), Balancing())))
    reconciler.apply(complete=True)
    assert reconciler.warnings() == []
