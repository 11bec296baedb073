"""Planning after a restart: what an earlier agent left, whole or not."""

import numpy as np
import pytest

from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key, marker_key
from lbctl.plan.planner import Planner
from lbctl.program import readback, writes
from lbctl.resolve.ports import ResolvedPort
from tests.support.planning import NONE_SEEN, TCP, WEB, Node, endpoints, frontend, resolved


@pytest.fixture
def node() -> Node:
    return Node()


def full(node: Node) -> list[ResolvedPort]:
    ports = [
        resolved("a/web", endpoints("10.0.0.1", "10.0.0.2"), (WEB,)),
        resolved("a/dns", endpoints("10.0.0.3"), (frontend("10.96.0.2", 53),)),
    ]
    node.apply(*ports)
    return ports


def test_services_are_counted_not_their_ports(node: Node) -> None:
    assert readback.count_services(node.tables) == 0
    ports = full(node)
    other = resolved("a/web:more/TCP/v4", endpoints("10.0.0.1"), (frontend("10.96.0.1", 81),))
    node.apply(*ports, other)
    assert readback.count_services(node.tables) == 2


def test_a_foreign_frontend_is_replaced_or_removed(node: Node) -> None:
    ports = full(node)
    before = node.tables.snapshot()
    stray, web = (
        frontend_key(parse_address("10.96.0.9"), 80, TCP),
        frontend_key(WEB.address, 80, TCP),
    )
    frontends = Frontends(node.tables.frontends)
    frontends.put([(stray, 77, 1), (web, 78, 1)])
    frontends.delete([marker_key(WEB.address)])
    node.restart()
    assert node.leftovers.strays == 2
    assert frontends.get(stray)  # nothing is deleted at start
    node.apply(*ports)
    assert node.tables.snapshot() == before


def test_a_region_with_a_foreign_backend_is_written_anew(node: Node) -> None:
    ports = full(node)
    node.tables.slots.records["backend"][1] = 3  # of a/dns
    node.restart()
    assert node.leftovers.unknown == ["a/web"]
    node.apply(*ports)
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80", "10.0.0.2:80"]
    assert node.lookup("10.96.0.2", 53) == ["10.0.0.3:80"]
    node.restart()
    assert node.leftovers.unknown == []


@pytest.mark.parametrize("word", [1 << 40 | 2, 5 << 32 | 1022, 3 << 32])
def test_a_region_outside_the_map_or_on_anothers_is_written_anew(node: Node, word: int) -> None:
    ports = full(node)
    node.tables.services.records["cluster"][1] = word
    node.restart()
    assert "a/web" in node.leftovers.unknown
    node.apply(*ports)
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80", "10.0.0.2:80"]
    assert node.lookup("10.96.0.2", 53) == ["10.0.0.3:80"]


def test_an_interrupted_switch_is_finished(node: Node) -> None:
    ports = full(node)
    plan = node.planner.plan({"a/web": resolved("a/web", endpoints("10.0.0.1"), (WEB,))}, node.now)
    plan.lowered.clear()  # killed before the last step
    writes.apply(plan, node.tables)
    assert node.restart() == 1
    serving = node.tables.backends.records["flags"] & consts.BACKEND_SERVING
    assert np.count_nonzero(serving) == 2
    del ports


def test_two_ids_of_one_name_become_one(node: Node) -> None:
    ports = full(node)
    names = node.tables.names
    names.put(names.spec.key.pack(service=9), names.spec.value.pack(text=b"a/web"))
    node.restart()
    assert node.apply(*ports).writes() == {}
    freed = node.planner.recover(node.now + 5, NONE_SEEN, NONE_SEEN)
    assert freed.services == [9]
    writes.clear(freed, node.tables)
    assert len(names.entries) == 2


def test_endpoints_and_addresses_that_are_missing_are_put_back_at_start(node: Node) -> None:
    """What the layout of an earlier version has not."""
    full(node)
    known = node.tables.snapshot()
    frontends, backends = Frontends(node.tables.frontends), node.tables.backends.records
    frontends.release(backends)
    frontends.hold(backends[2:3])
    frontends.hold(backends[2:3])
    frontends.delete([marker_key(WEB.address)])
    # The marker; three endpoints and the address of each, of which one pair has wrong counts.
    assert node.restart() == 7
    assert node.tables.snapshot() == known
    assert node.restart() == 0


def test_places_freed_before_a_restart_rest_again(node: Node) -> None:
    full(node)
    node.apply(resolved("a/web", endpoints("10.0.0.9"), (WEB,)))
    node.restart()
    planner: Planner = node.planner
    assert planner.backend_ids.resting == 2
    assert planner.regions.resting == 2
    assert planner.backend_ids.take() == 5
    assert planner.recover(node.now + 1.9, NONE_SEEN, NONE_SEEN).backends == []
    assert planner.recover(node.now + 2.0, NONE_SEEN, NONE_SEEN).backends == [1, 2]
