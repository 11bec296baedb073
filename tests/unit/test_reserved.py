"""Health-check node ports against external addresses that claim them, in any order of arrival."""

from __future__ import annotations

import itertools
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.addresses import parse_address
from lbctl.model.records import ObjectKey, Service, ServiceObjects
from lbctl.reconcile.reconciler import Reconciler
from lbctl.reconcile.reserved import Reserved
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeTables
from tests.support.reconciling import objects, update

OWN, CHECK = "192.0.2.1", 32000
NODE = NodeFacts("node1", addresses=(parse_address(OWN),))


def with_spec(made: ServiceObjects, **spec: object) -> ServiceObjects:
    service = cast(Service, made.service)
    return ServiceObjects(msgspec.structs.replace(service, **spec), made.slices)


BALANCED = with_spec(
    objects("balanced", "10.96.0.1", ["10.0.0.1"]),
    type="LoadBalancer",
    external_local=True,
    health_check_node_port=CHECK,
)
THIEF = with_spec(
    objects("thief", "10.96.0.2", ["10.0.0.2"], port=CHECK), external_ips=(parse_address(OWN),)
)


def taken(tables: FakeTables) -> bool:
    """Whether packets to the health check's place go to a service."""
    place = parse_address(OWN) + CHECK.to_bytes(2, "big")
    return any(key[:18] == place and flags for key, (_, flags) in tables.frontend_entries().items())


@pytest.fixture
def tables() -> FakeTables:
    return FakeTables()


@pytest.mark.parametrize("order", [*itertools.permutations([BALANCED, THIEF])])
@pytest.mark.parametrize("at_once", [False, True])
def test_the_health_check_is_reached(
    tables: FakeTables, order: tuple[ServiceObjects, ...], at_once: bool
) -> None:
    reconciler = Reconciler(tables, NODE)
    for batch in [order] if at_once else [[one] for one in order]:
        reconciler.take(update(*batch))
        reconciler.apply(complete=True)
    assert not taken(tables)
    [told] = reconciler.warnings()
    assert "default/thief" in told
    assert "healthCheckNodePort of default/balanced" in told
    # Without the load balancer it is a port like any other, until it is back.
    reconciler.take(update(gone=["balanced"]))
    reconciler.apply(complete=True)
    assert taken(tables)
    assert reconciler.warnings() == []
    reconciler.take(update(BALANCED))
    reconciler.apply(complete=True)
    assert not taken(tables)


def test_another_address_of_the_node_is_looked_at_again(tables: FakeTables) -> None:
    reconciler = Reconciler(tables, NodeFacts("node1"))
    reconciler.take(update(BALANCED, THIEF))
    reconciler.apply(complete=True)
    assert taken(tables)
    reconciler.set_node(NODE)
    reconciler.apply(complete=True)
    assert not taken(tables)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2])), max_size=20))
def test_what_is_kept_up_is_what_would_be_made_anew(steps: list[tuple[int, int]]) -> None:
    """Services that come, go and change their port; two may ask for one."""
    known: dict[ObjectKey, ServiceObjects] = {}
    kept = Reserved()
    for number, port in steps:
        key = ObjectKey("default", f"s{number}")
        made = objects(key.name, f"10.96.1.{number}", [])
        known[key] = with_spec(
            made, type="LoadBalancer", external_local=True, health_check_node_port=port
        )
        kept.take([key], known, NODE)
    anew = Reserved()
    anew.take(known, known, NODE)
    assert kept.ports == anew.ports
