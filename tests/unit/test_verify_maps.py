"""`lbctl verify`, the part about maps: every fault is a difference of the right port, and where an
agent has just written, there is none."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.addresses import parse_address
from lbctl.model.records import Balancing, ObjectKey, ServiceObjects
from lbctl.plan.alloc import GRACE_SECONDS
from lbctl.reconcile.reconciler import Reconciler
from lbctl.verify import maps
from lbctl.verify.difference import Difference
from tests.support import map_faults
from tests.support.fake_tables import FakeTables
from tests.support.map_faults import (
    BACKENDS,
    FAULTS,
    add_endpoint,
    add_frontend,
    change_share,
    change_since,
    change_weight,
    equal_shares,
    guarded,
    lose_endpoint,
    lose_table,
    miscount_endpoint,
    mislead_table,
)
from tests.support.reconciling import NODE, Clock, balanced, objects, update

Services = dict[ObjectKey, ServiceObjects]


def services(*found: ServiceObjects) -> Services:
    return {o.service.key: o for o in found if o.service}


def usual() -> Services:
    return services(*map_faults.usual())


def written(found: Services) -> FakeTables:
    tables = FakeTables()
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(*found.values()))
    reconciler.apply(complete=True)
    return tables


def compared(tables: FakeTables, found: Services) -> list[Difference]:
    before = tables.snapshot()
    differences = sorted(maps.compare(tables, found, NODE, {}))
    assert tables.snapshot() == before
    return differences


def test_nothing_differs_after_an_agent() -> None:
    assert compared(written(usual()), usual()) == []


def test_nothing_differs_after_changes_of_which_something_rests() -> None:
    tables = FakeTables()
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(*usual().values(), objects("gone", "172.30.0.8", BACKENDS)))
    reconciler.apply(complete=True)
    now = services(objects("web", "172.30.0.7", BACKENDS[1:]), guarded("lb", "192.0.2.81"))
    reconciler.take(update(*now.values(), gone=["dns", "alone", "gone", "hashed", "weighted"]))
    reconciler.apply(complete=True)
    assert GRACE_SECONDS > 0
    assert compared(tables, now) == []


# When an endpoint began, no object says: an agent alone knows what it wrote.
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f is not change_since], ids=lambda fault: fault.__name__
)
def test_each_fault_is_a_difference(fault: Callable[[FakeTables], None]) -> None:
    tables = written(usual())
    fault(tables)
    found = compared(tables, usual())
    kinds = {one.kind for one in found}
    if FAULTS[fault] == "endpoint entry":
        assert "endpoint" in kinds
        return
    named = [one for one in found if one.kind == "service"]
    assert kinds - {"endpoint"} == {"service"}
    assert all(one.object.startswith("default/") for one in named), named
    if fault is add_frontend:
        (one,) = named
        assert one.what.startswith("an address should not lead to it: ")


SENTENCES: dict[Callable[[FakeTables], None], tuple[str, str]] = {
    change_weight: ("default/web/TCP/v4", "the weight of an endpoint differs: 10.0.0.1:8080"),
    change_share: ("default/web/TCP/v4", "the shares of its endpoints differ"),
    equal_shares: ("default/weighted/TCP/v4", "the shares of its endpoints differ"),
    mislead_table: ("default/hashed/TCP/v4", "its table of hashes differs"),
    lose_table: ("default/hashed/TCP/v4", "its table of hashes differs"),
}


@pytest.mark.parametrize("fault", SENTENCES, ids=lambda fault: fault.__name__)
def test_what_is_said_of_it(fault: Callable[[FakeTables], None]) -> None:
    tables = written(usual())
    fault(tables)
    assert [(one.object, one.what) for one in compared(tables, usual())] == [SENTENCES[fault]]


@pytest.mark.parametrize("fault", [lose_endpoint, miscount_endpoint])
def test_an_endpoint_is_said_to_have_other_backends(fault: Callable[[FakeTables], None]) -> None:
    tables = written(usual())
    fault(tables)
    found = compared(tables, usual())
    assert {one.kind for one in found} == {"endpoint"}
    assert {one.object.partition(":")[0] for one in found} < {*BACKENDS}


def test_an_endpoint_that_nobody_has() -> None:
    """It is known, and its address by itself."""
    tables = written(usual())
    add_endpoint(tables)
    what = "its entry by address is of 1 backends, and 0 have it"
    found = {(one.object, one.what) for one in compared(tables, usual())}
    assert found == {("10.0.0.129:8080", what), ("10.0.0.129", what)}


def test_shares_that_grow_are_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    tables = FakeTables()
    reconciler = Reconciler(tables, NODE)
    for backends in (BACKENDS[:1], BACKENDS):
        wanted = services(
            balanced(objects("slow", "172.30.0.7", backends), Balancing(slow_start=90))
        )
        reconciler.take(update(*wanted.values()))
        reconciler.apply(complete=True)
    seen = set()
    while (due := reconciler.warming_due()) is not None:
        assert compared(tables, wanted) == []
        clock.now = due - 0.1
        assert compared(tables, wanted) == []
        clock.now = due
        reconciler.warm(due)
        seen.add(tables.slots.records["share"].tobytes())
    clock.now += 100
    assert compared(tables, wanted) == []
    assert len(seen) > 10


CHANGES: dict[str, tuple[Services, set[tuple[str, str]]]] = {
    "a service is new": (
        usual() | services(objects("new", "172.30.0.9", BACKENDS)),
        {("default/new/TCP/v4", "it is not programmed")},
    ),
    "a service is gone": (
        {key: value for key, value in usual().items() if key.name != "dns"},
        {("default/dns/TCP/v4", "it is served, and no object asks for it")},
    ),
    "an endpoint is new": (
        usual() | services(objects("web", "172.30.0.1", [*BACKENDS, "10.0.0.9"])),
        {("default/web/TCP/v4", "an endpoint is missing: 10.0.0.9:8080")},
    ),
    "an endpoint left": (
        usual() | services(objects("web", "172.30.0.1", BACKENDS[:2])),
        {
            ("default/web/TCP/v4", "an endpoint is there that should not be so: 10.0.0.3:8080"),
            ("default/web/TCP/v4", "an endpoint set differs"),
        },
    ),
    "an address is another": (
        usual() | services(objects("web", "172.30.0.6", BACKENDS)),
        {
            (
                "default/web/TCP/v4",
                "an address does not lead to it: 172.30.0.6:80/TCP, 172.30.0.6 (marker)",
            ),
            (
                "default/web/TCP/v4",
                "an address should not lead to it: 172.30.0.1:80/TCP, 172.30.0.1 (marker)",
            ),
        },
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_objects_say_now_and_the_maps_do_not(change: str) -> None:
    now, wanted = CHANGES[change]
    found = compared(written(usual()), now)
    assert {(one.object, one.what) for one in found} == wanted


def test_who_waits_for_room_is_no_difference() -> None:
    now = usual() | services(objects("new", "172.30.0.9", BACKENDS))
    found = maps.compare(written(usual()), now, NODE, {"default/new": "it has no room"})
    assert list(found) == []


def test_an_address_that_two_ask_for_is_the_older_ones() -> None:
    def claiming(name: str, own: str, seniority: bytes) -> ServiceObjects:
        made = objects(name, own, BACKENDS[:1])
        assert made.service
        service = msgspec.structs.replace(
            made.service, external_ips=(parse_address("192.0.2.7"),), seniority=seniority
        )
        return msgspec.structs.replace(made, service=service)

    both = services(claiming("young", "172.30.1.1", b"2"), claiming("old", "172.30.1.2", b"1"))
    assert compared(written(both), both) == []
    assert compared(written(both), dict(reversed(both.items()))) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=6),
)
def test_differences_are_of_those_that_changed(
    before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    def made(chosen: list[tuple[int, int]]) -> Services:
        return services(
            *(
                objects(f"s{number}", f"172.30.2.{number + 1}", BACKENDS[:count])
                for number, count in dict(chosen).items()
            )
        )

    then, now = made(before), made(after)
    found = compared(written(then), now)
    changed = {key.name for key in then.keys() | now.keys() if then.get(key) != now.get(key)}
    assert {one.object.partition("/")[2].partition("/")[0] for one in found} == changed
