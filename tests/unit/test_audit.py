"""The agent's audit: what somebody breaks in the maps is found, named and put right, in steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.addresses import parse_address, parse_prefix
from lbctl.datapath import filters
from lbctl.model.records import ServiceObjects
from lbctl.reconcile import audit
from lbctl.reconcile.reconciler import Reconciler
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import NODE, objects, update

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
    tables.frontends.delete(next(iter(tables.frontends.entries)))


def change_frontend(tables: FakeTables) -> None:
    key, value = next(iter(tables.frontends.entries.items()))
    tables.frontends.entries[key] = value[:-4] + b"\xff\0\0\0"


def add_frontend(tables: FakeTables) -> None:
    key, value = next(iter(tables.frontends.entries.items()))
    other = bytes([key[0] ^ 1]) + key[1:]
    tables.frontends.entries[other] = other + value[len(other) :]


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


def clear_service_bit(tables: FakeTables) -> None:
    tables.service_filter.records[:] = 0


def clear_backend_bit(tables: FakeTables) -> None:
    tables.backend_filter.records[:] = 0


FAULTS: dict[Callable[[FakeTables], None], str] = {
    lose_frontend: "frontend",
    change_frontend: "frontend",
    add_frontend: "stray frontend",
    lose_name: "name",
    empty_set: "service",
    change_policy: "service",
    lower_backend: "endpoints",
    mislead_slot: "endpoints",
    blank_slot: "endpoints",
    move_backend: "endpoints",
    double_backend: "endpoints",
    lose_range: "source range",
    add_range: "source range",
    clear_service_bit: "filter",
    clear_backend_bit: "filter",
}


def served(tables: FakeTables) -> dict[str, object]:
    """What packets see: by address, the endpoints it leads to."""
    from lbctl.inspect import names, services

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
    before = served(made.tables)
    wanted_bits = {
        name: table.records.copy()
        for name, table in vars(made.tables).items()
        if name.endswith("_filter")
    }
    fault(made.tables)
    made.run()
    # A record that rests until no flow has it keeps what it was made to say, and its bit is set.
    assert made.counts.keys() - {"filter"} == {FAULTS[fault]} - {"filter"}
    assert made.counts[FAULTS[fault]]
    assert served(made.tables) == before
    for name, bits in wanted_bits.items():
        now = getattr(made.tables, name).records
        assert (now & bits == bits).all()
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
    for fault in faults:
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


def test_bits_of_others_stay() -> None:
    made = world()
    bits = filters.service_bits([parse_address("172.30.0.200")])
    filters.set_bits(made.tables.service_filter, bits)
    made.run()
    assert filters.set_bits(made.tables.service_filter, bits) == 0
    assert made.counts == {}
