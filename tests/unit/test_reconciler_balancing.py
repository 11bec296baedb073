"""The choice of endpoints between changes: shares that grow, tables without room."""

import time

import pytest

from lbctl.model.records import Balancing
from lbctl.plan import maglev
from lbctl.program import readback
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


def test_who_lacks_a_table_is_looked_at_again_when_there_is_room(tables: FakeTables) -> None:
    reconciler = Reconciler(tables, NODE)
    pool = reconciler.planner.tables.regions
    base = pool.take(pool.capacity, 0.0)
    wanted = balanced(objects("web", "10.96.0.1", ["10.0.0.1"]), Balancing(algorithm="maglev"))
    reconciler.take(update(wanted))
    reconciler.apply(complete=True)
    assert reconciler.warnings() != []
    assert not reconciler.freed(), "there is no room yet"
    pool.give_back(base, pool.capacity)
    assert reconciler.freed()
    assert not reconciler.at_rest
    reconciler.apply(complete=True)
    assert reconciler.warnings() == []
    assert tables.services.records["cluster_table"].any()
    assert not reconciler.freed()


def test_who_lacks_a_table_until_maps_have_grown_is_not_told_to_restart(tables: FakeTables) -> None:
    now = readback.room_of(tables)
    reconciler = Reconciler(tables, NODE, most=now._replace(backends=2 * now.backends))
    reconciler.read_back()
    pool = reconciler.planner.tables.regions
    pool.take(pool.capacity, 0.0)
    wanted = balanced(objects("web", "10.96.0.1", ["10.0.0.1"]), Balancing(algorithm="maglev"))
    reconciler.take(update(wanted))
    reconciler.apply(complete=True)
    (said,) = reconciler.warnings()
    assert "until it has grown" in said
    assert "--endpoints" not in said


def test_what_tables_will_take_is_known_before_any_is_made(tables: FakeTables) -> None:
    backends = [f"10.0.0.{number}" for number in range(1, 12)]
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(objects("plain", "10.96.0.1", backends)))
    assert reconciler.expected_places() == 0
    hashed = balanced(objects("web", "10.96.0.2", backends), Balancing(algorithm="maglev"))
    reconciler.take(update(hashed))
    assert reconciler.expected_places() == maglev.size_for(len(backends))
    reconciler.apply(complete=True)
    assert reconciler.planner.table_places == reconciler.expected_places()
