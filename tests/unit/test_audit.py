"""The agent's audit: what somebody breaks in the maps is found, named and put right, in steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf.maps.buckets import BucketTable
from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.regions import table_places
from lbctl.inspect import names, services
from lbctl.model.records import Balancing, ServiceObjects
from lbctl.reconcile import audit
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import NODE, Clock, balanced, objects, update

BACKENDS = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def guarded(name: str, address: str) -> ServiceObjects:
    """A load balancer that has source ranges."""
    made = objects(name, "172.30.0.9", BACKENDS[:1])
    assert made.service
    service = msgspec.structs.replace(
        made.service,
        type="LoadBalancer",
        ingress_ips=(parse_address(address),),
        source_ranges=(parse_prefix("198.51.100.0/24"), parse_prefix("203.0.113.0/24")),
    )
    return msgspec.structs.replace(made, service=service)


def hashed() -> ServiceObjects:
    return balanced(objects("hashed", "172.30.0.15", BACKENDS), Balancing(algorithm="maglev"))


def weighted() -> ServiceObjects:
    """A service whose last endpoint is worth less than the others."""
    made = objects("weighted", "172.30.0.16", BACKENDS)
    (part,) = made.slices
    *most, last = part.endpoints
    endpoints = (*most, msgspec.structs.replace(last, weight=7))
    return msgspec.structs.replace(
        made, slices=(msgspec.structs.replace(part, endpoints=endpoints),)
    )


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
    reconciler.take(
        update(
            objects("web", "172.30.0.1", BACKENDS),
            objects("dns", "172.30.0.2", BACKENDS[:2], port=53),
            objects("alone", "172.30.0.3", []),
            guarded("lb", "192.0.2.80"),
            hashed(),
            weighted(),
        )
    )
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


def lose_frontend(tables: FakeTables) -> None:
    Frontends(tables.frontends).delete([next(iter(tables.frontend_entries()))])


def change_frontend(tables: FakeTables) -> None:
    key, (service, flags) = next(iter(tables.frontend_entries().items()))
    Frontends(tables.frontends).put([(key, service ^ 1, flags)])


def add_frontend(tables: FakeTables) -> None:
    """An address leads to a service that has it not; markers lead to none."""
    found = tables.frontend_entries().items()
    key, owner = next((key, owner) for key, owner in found if owner[0])
    Frontends(tables.frontends).put([(bytes([key[0] ^ 1]) + key[1:], *owner)])


def lose_marker(tables: FakeTables) -> None:
    found = tables.frontend_entries().items()
    Frontends(tables.frontends).delete([key for key, (service, _) in found if not service])


def hide_frontends(tables: FakeTables) -> None:
    """What readers of the table go by first is wrong of every key."""
    control = np.asarray(tables.frontends.records).view(np.uint8)[32:]
    tags = control[: BucketTable(tables.frontends).places]
    tags[tags != 0] ^= 0x80


def lose_endpoint(tables: FakeTables) -> None:
    Frontends(tables.frontends).delete([next(iter(tables.endpoint_entries())) + b"\0"])


def miscount_endpoint(tables: FakeTables) -> None:
    Frontends(tables.frontends).hold(tables.backends.records[1:2])


def take_endpoint(tables: FakeTables) -> None:
    """Its entry says that it is a frontend."""
    key = next(iter(tables.endpoint_entries())) + b"\0"
    Frontends(tables.frontends).put([(key, 1, consts.FRONTEND_CLUSTER_IP)])


def add_endpoint(tables: FakeTables) -> None:
    nobodys = tables.backends.records[1:2].copy()
    nobodys["addr"]["w"][:, 3] ^= np.uint32(1 << 31)
    Frontends(tables.frontends).hold(nobodys)


def lose_name(tables: FakeTables) -> None:
    tables.names.delete(next(iter(tables.names.entries)))


def empty_set(tables: FakeTables) -> None:
    tables.services.records["cluster"][1] = 0


def change_policy(tables: FakeTables) -> None:
    tables.services.records["flags"][1] ^= 1


def lower_backend(tables: FakeTables) -> None:
    tables.backends.records["flags"][1] = 0


def mislead_slot(tables: FakeTables) -> None:
    """To a backend of another service."""
    owners = tables.backends.records["service"]
    foreign = next(i for i in range(1, len(owners)) if owners[i] not in (0, owners[1]))
    tables.slots.records["backend"][0] = foreign


def blank_slot(tables: FakeTables) -> None:
    tables.slots.records["backend"][0] = 0


def move_backend(tables: FakeTables) -> None:
    tables.backends.records["port"][1] = 9


def double_backend(tables: FakeTables) -> None:
    """Two of one service have the same address."""
    records = tables.backends.records
    owners = records["service"].tolist()
    other = owners.index(owners[1], 2)
    records["addr"][other] = records["addr"][1]


def lose_range(tables: FakeTables) -> None:
    tables.source_ranges.delete(next(iter(tables.source_ranges.entries)))


def add_range(tables: FakeTables) -> None:
    key = next(iter(tables.source_ranges.entries))
    tables.source_ranges.entries[key[:-1] + b"\x77"] = b"\1\0\0\0"


def change_weight(tables: FakeTables) -> None:
    tables.backends.records["weight"][1] = 9


def change_since(tables: FakeTables) -> None:
    """It would be spared as one that is new."""
    tables.backends.records["since"][1] = 12345


def change_share(tables: FakeTables) -> None:
    """Of a service all of whose endpoints are worth the same."""
    tables.slots.records[0] = tables.slots.records["backend"][0], 1000, 1


def equal_shares(tables: FakeTables) -> None:
    tables.slots.records["share"] = 0


def mislead_table(tables: FakeTables) -> None:
    places = table_places(tables.hash_tables.records)
    places[np.flatnonzero(places)[5]] = 1


def lose_table(tables: FakeTables) -> None:
    tables.services.records["cluster_table"] = 0


FAULTS: dict[Callable[[FakeTables], None], str] = {
    lose_frontend: "frontend",
    change_frontend: "frontend",
    add_frontend: "stray frontend",
    lose_marker: "frontend",
    hide_frontends: "frontend",
    lose_endpoint: "endpoint entry",
    miscount_endpoint: "endpoint entry",
    take_endpoint: "endpoint entry",
    add_endpoint: "endpoint entry",
    lose_name: "name",
    empty_set: "service",
    change_policy: "service",
    lower_backend: "endpoints",
    mislead_slot: "endpoints",
    blank_slot: "endpoints",
    move_backend: "endpoints",
    double_backend: "endpoints",
    change_weight: "endpoints",
    change_since: "endpoints",
    change_share: "endpoints",
    equal_shares: "endpoints",
    mislead_table: "endpoints",
    lose_table: "service",
    lose_range: "source range",
    add_range: "source range",
}
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
