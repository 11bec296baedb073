"""Who is served when there is not room for all: the rule alone, and through the reconciler, in any
order of arrival and over restarts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath.records import ADDRESS_BYTES, marker_key
from lbctl.model.records import (
    EndpointSlice,
    Hints,
    ObjectKey,
    Protocol,
    Service,
    ServiceObjects,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from lbctl.plan.claims import Claims
from lbctl.plan.rooms import Need, Room, sum_of
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import NODE, Clock, settle, sweep, update

SIZES = {"services": 65, "endpoints": 257, "slots": 1024}


class Asked(NamedTuple):
    """A service by what it asks for."""

    name: str
    born: int  # 0: it does not say
    ports: int
    endpoints: int
    ranges: int = 0


def made(asked: Asked, number: int) -> ServiceObjects:
    """Its objects. `number` is of its address."""
    key = ObjectKey("default", asked.name)
    ports = [f"p{i}" for i in range(asked.ports)]
    ranges = [parse_prefix(f"198.{i}.0.0/16") for i in range(asked.ranges)]
    hosts = (parse_address(f"10.{number}.{i // 250}.{i % 250}") for i in range(asked.endpoints))
    return ServiceObjects(
        Service(
            key,
            "LoadBalancer",
            cluster_ips=(parse_address(f"10.96.0.{number}"),),
            ports=tuple(ServicePort(p, Protocol.TCP, 1000 + i) for i, p in enumerate(ports)),
            seniority=asked.born.to_bytes(8, "big") if asked.born else b"",
            ingress_ips=(parse_address(f"192.0.2.{number}"),) if ranges else (),
            source_ranges=tuple(ranges),
        ),
        (
            EndpointSlice(
                ObjectKey("default", f"{asked.name}-1"),
                key,
                4,
                tuple(SlicePort(p, Protocol.TCP, 8080) for p in ports),
                tuple(SliceEndpoint(h, "", True, True, False, Hints()) for h in hosts),
            ),
        ),
    )


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    found = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "monotonic", found)
        yield found


def served(reconciler: Reconciler) -> set[str]:
    """Ports whose sets are as their objects say."""
    return set(reconciler.planner.services) - set(reconciler._places.waiting)


def arrive(
    tables: FakeTables,
    clock: Clock,
    batches: Sequence[Sequence[ServiceObjects]],
    restarts: set[int],
) -> Reconciler:
    """Objects come in batches; after some of these another agent takes over."""
    reconciler = Reconciler(tables, NODE)
    seen: list[ServiceObjects] = []
    for number, batch in enumerate(batches):
        seen += batch
        reconciler.take(update(*batch))
        reconciler.apply(complete=True)
        clock.now += 0.5
        if number in restarts:
            reconciler = Reconciler(tables, NODE)
            reconciler.take(update(*reversed(seen)))
            reconciler.apply(complete=True)
    settle(reconciler, clock)
    return reconciler


COUNTS = st.tuples(st.integers(1, 400), st.integers(1, 30), st.integers(0, 12), st.integers(0, 12))


def written(tables: FakeTables) -> tuple[object, ...]:
    """What was made of the objects."""
    return tables.snapshot(), tables.word_stores(), tables.hash_writes()


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Asked], list[list[int]], set[int]]:
    """Services, and the batches in which they arrive, by number."""
    counts = draw(st.lists(COUNTS, min_size=1, max_size=14))
    services = [Asked(f"s{i:02}", *count) for i, count in enumerate(counts)]
    order = draw(st.permutations(range(len(services))))
    cuts = sorted(draw(st.sets(st.integers(0, len(services)), max_size=4)))
    edges = [0, *cuts, len(services)]
    batches = [list(order[a:b]) for a, b in itertools.pairwise(edges)]
    return services, batches, draw(st.sets(st.integers(0, len(batches) - 1), max_size=2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_any_order_and_any_restart_come_to_the_same(
    clock: Clock, history: tuple[list[Asked], list[list[int]], set[int]]
) -> None:
    services, batches, restarts = history
    objects = [made(asked, i) for i, asked in enumerate(services)]
    at_once = arrive(FakeTables(**SIZES), clock, [objects], set())
    tables = FakeTables(**SIZES)
    piecemeal = arrive(tables, clock, [[objects[i] for i in part] for part in batches], restarts)
    assert served(piecemeal) == served(at_once)
    # What is served is whole, and nobody who fits is left out for nothing.
    room = at_once.planner.room
    assert at_once.planner.used.fits(room.all)
    before = written(tables)
    again = Reconciler(tables, NODE)
    again.take(update(*objects))
    again.apply(complete=True)
    assert served(again) == served(piecemeal)
    assert written(tables) == before


# Too many ports, too many endpoints, too many source ranges.
BORN = st.integers(0, 400)
HOSTILE = st.one_of(
    st.tuples(BORN, st.integers(60, 200), st.just(1), st.just(0)),
    st.tuples(BORN, st.just(1), st.integers(200, 900), st.just(0)),
    st.tuples(BORN, st.just(20), st.just(1), st.integers(60, 99)),
).map(lambda counts: Asked("hostile", *counts))
ORDINARY = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 3), st.integers(0, 5), st.integers(0, 1)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HOSTILE, ORDINARY, st.data())
def test_nobody_is_harmed_by_one_that_asks_for_everything(
    clock: Clock, hostile: Asked, counts: list[tuple[int, int, int, int]], data: st.DataObject
) -> None:
    objects = [made(Asked(f"s{i:02}", *c), i) for i, c in enumerate(counts)]
    alone = arrive(FakeTables(**SIZES), clock, [objects], set())
    assert not alone.waiting
    place = data.draw(st.integers(0, len(objects)), "when the hostile one arrives")
    batches = [objects[:place], [made(hostile, 200)], objects[place:]]
    beside = arrive(FakeTables(**SIZES), clock, batches, {1})
    assert served(alone) <= served(beside)
    # It says one thing, about the one that asks for too much.
    told = [w for w in beside.warnings() if "no room" in w]
    assert len(told) <= 1
    assert all(w.startswith("default/hostile ") for w in told)


# Up to a quarter of SIZES in every way.
ORDINARY_SHARES = st.tuples(st.integers(1, 15), st.integers(1, 4), st.integers(0, 1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(ORDINARY_SHARES, min_size=1, max_size=8),
    st.lists(COUNTS.map(lambda c: c[1:]), min_size=1, max_size=30),
    st.data(),
)
def test_what_works_is_not_put_out_by_anything_younger(
    clock: Clock,
    works: list[tuple[int, int, int]],
    younger: list[tuple[int, int, int]],
    data: st.DataObject,
) -> None:
    """Whether one that asks for everything or a crowd of small ones, unless it takes more than a
    quarter itself."""
    old = [made(Asked(f"old{i}", 1 + i, *counts), i) for i, counts in enumerate(works)]
    new = [made(Asked(f"new{i}", 100 + i, *c), 100 + i) for i, c in enumerate(younger)]
    alone = served(arrive(FakeTables(**SIZES), clock, [old], set()))
    beside = arrive(FakeTables(**SIZES), clock, [old, new], {1})
    assert alone <= served(beside)
    everything = data.draw(st.permutations([*old, *new]), "another node's order")
    assert served(arrive(FakeTables(**SIZES), clock, [everything], set())) == served(beside)


def test_a_crowd_of_small_ones_puts_out_nobody_who_has_a_quarter(clock: Clock) -> None:
    quarter = made(Asked("quarter", 5, 16, 2), 200)
    crowd = [made(Asked(f"s{i:02}", 10 + i, 1, 2), i) for i in range(90)]
    reconciler = arrive(FakeTables(**SIZES), clock, [[quarter], crowd], {1})
    found = served(reconciler)
    assert len([name for name in found if name.startswith("default/quarter:")]) == 16
    assert len(found) == reconciler.planner.room.all.services
    # Nor where nothing says who is older, and its name is the last.
    undated = [made(Asked(f"s{i:02}", 0, 1, 2), i) for i in range(90)]
    z = made(Asked("z", 0, 16, 2), 200)
    found = served(arrive(FakeTables(**SIZES), clock, [[z], undated], {1}))
    assert len([name for name in found if name.startswith("default/z:")]) == 16
    # One that takes more of it gives way: it may have been small when it was made.
    more = made(Asked("more", 5, 17, 2), 200)
    reconciler = arrive(FakeTables(**SIZES), clock, [[more], crowd], {1})
    assert not [name for name in served(reconciler) if name.startswith("default/more:")]


def test_the_smaller_half_is_there_at_once(clock: Clock) -> None:
    """A small service that comes after one that took all it could get need not wait."""
    hostile = made(Asked("hostile", 1, 200, 1, 2), 200)
    reconciler = Reconciler(FakeTables(**SIZES), NODE)
    reconciler.take(update(hostile))
    reconciler.apply(complete=True)
    assert 0 < len(served(reconciler)) < 200
    for number in range(3):
        reconciler.take(update(made(Asked(f"s{number}", 9, 1, 3, 1), number)))
        reconciler.apply(complete=True)
        assert f"default/s{number}:p0/TCP/v4" in served(reconciler)


def test_what_is_served_is_not_evicted_for_something_new(clock: Clock) -> None:
    tables = FakeTables(services=17, endpoints=257, slots=1024)
    old = [made(Asked(f"s{i:02}", 10 + i, 1, 2), i) for i in range(16)]
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(*old))
    reconciler.apply(complete=True)
    before = written(tables)
    new = made(Asked("a-new-one", 99, 1, 2), 30)
    reconciler.take(update(new))
    reconciler.apply(complete=True)
    settle(reconciler, clock)
    assert written(tables) == before
    [told] = reconciler.warnings()
    assert "default/a-new-one" in told
    assert "--services" in told
    # Nor without dates, where the name alone would say otherwise.
    undated = [made(Asked(f"s{i:02}", 0, 1, 2), i) for i in range(16)]
    reconciler = arrive(FakeTables(services=17, endpoints=257, slots=1024), clock, [undated], set())
    reconciler.take(update(made(Asked("a-new-one", 0, 1, 2), 30)))
    reconciler.apply(complete=True)
    settle(reconciler, clock)
    assert served(reconciler) == {f"default/s{i:02}:p0/TCP/v4" for i in range(16)}


def test_of_too_many_endpoints_the_same_are_used_everywhere(clock: Clock) -> None:
    huge = made(Asked("huge", 1, 1, 900), 1)
    reconciler = arrive(FakeTables(**SIZES), clock, [[huge]], set())
    limit = reconciler.planner.room.endpoints_of_a_port
    assert reconciler.planner.backend_ids.in_use == limit
    [told] = reconciler.warnings()
    assert "900 endpoints" in told
    assert f"{limit}" in told


def test_a_thousand_ports_without_room_are_one_sentence(clock: Clock) -> None:
    huge = made(Asked("huge", 1, 1000, 1), 1)
    reconciler = arrive(FakeTables(**SIZES), clock, [[huge]], set())
    [told] = reconciler.warnings()
    assert "of its 1,000 ports" in told
    assert list(reconciler.troubles()) == ["default/huge"]


def test_all_that_is_wrong_with_one_is_one_sentence(clock: Clock) -> None:
    """Neither its place nor all of its endpoints: in the status as in the log."""
    with capture_logs() as logged:
        reconciler = arrive(
            FakeTables(**SIZES), clock, [[made(Asked("huge", 1, 100, 900), 1)]], set()
        )
    [told] = reconciler.warnings()
    assert told.startswith("default/huge has no room: ")
    assert "; besides, 900 endpoints" in told
    assert reconciler.troubles() == {"default/huge": (told,)}
    about = [entry for entry in logged if entry.get("service") == "default/huge"]
    assert len(about) == 1


def test_looking_again_takes_longer_and_longer_while_it_is_in_vain(clock: Clock) -> None:
    reconciler = arrive(FakeTables(**SIZES), clock, [[made(Asked("huge", 1, 200, 1), 1)]], set())
    applied = 0
    began = clock.now
    while clock.now < began + 600:
        due = reconciler.retry_at()
        if due is None:
            break
        clock.now = max(clock.now, due)
        reconciler.apply(complete=True)
        applied += 1
    assert applied <= 20
    sweep(reconciler, clock, 11)


def test_grades() -> None:
    room = Room(Need(1600, 6400, 6400, 3200, 1600), 80)
    one = Need(1, 2, 10, 10, 0)
    assert room.grade(one) == 0
    assert room.grade(sum_of([one] * 10)) == 0
    found = [room.grade(Need(n, 0, 0, 0, 0)) for n in (100, 101, 200, 201, 400, 800, 1600, 1601)]
    assert found == [0, 1, 1, 2, 2, 3, 4, 5]
    assert room.grade(Need(1, 1, 1, 1, 10**9)) == 5


class NeverWhole(dict[bytes, int]):
    """What is asked about single keys alone: going through it would cost more with each service."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError

    def keys(self) -> Any:
        raise AssertionError


def test_what_a_service_would_add_is_found_without_a_look_at_the_others() -> None:
    claims = Claims(lambda number: None)
    key = bytes(range(24))
    claims._owner = NeverWhole({key: 1})
    assert claims.missing([(key, 0)]) == {marker_key(key[:ADDRESS_BYTES])}
