"""How endpoints are chosen, as planned: shares, tables, near ones, new ones, those that leave."""

import numpy as np
import pytest

from lbctl.datapath import consts
from lbctl.datapath.regions import region_of
from lbctl.datapath.ticks import TICK_SECONDS, tick_at
from lbctl.plan import maglev
from lbctl.plan.changes import Plan
from lbctl.program import writes
from lbctl.resolve.ports import AT_RANDOM, Choice, Endpoint, ResolvedPort
from tests.support.fake_tables import FakeTables
from tests.support.planning import WEB, Node, endpoints, resolved

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
ALL = (A, B, C)
SLOW = Choice(slow_start=30.0)


@pytest.fixture
def node() -> Node:
    return Node()


def web(
    members: tuple[Endpoint, ...], choice: Choice = AT_RANDOM, external_local: bool = False
) -> ResolvedPort:
    return resolved("a/web", members, (WEB,), choice=choice, external_local=external_local)


def flags(node: Node) -> int:
    return int(node.service("a/web")["flags"])


def backends(node: Node, field: str) -> dict[str, int]:
    """A field of every backend that serves, by address."""
    records = node.tables.backends.records
    ids = np.flatnonzero(records["flags"] & consts.BACKEND_SERVING)
    return dict(zip(node.addresses(ids), records[field][ids].tolist(), strict=True))


def test_the_plain_case_costs_nothing(node: Node) -> None:
    node.apply(web(endpoints(*ALL)))
    assert flags(node) == 0
    assert not node.tables.slots.records["share"].any()
    assert backends(node, "weight") == dict.fromkeys(ALL, 100)
    assert not node.planner.services["a/web"].shaped


# Weights


def test_weights_change_in_place(node: Node) -> None:
    """No set is switched for it, and no hash map written."""
    node.apply(web(endpoints(*ALL)))
    word, writes = int(node.service("a/web")["cluster"]), node.tables.hash_writes()
    plan = node.apply(web(endpoints(*ALL, weights={A: 300})))
    assert plan.writes() == {"weights": 1, "shares": 3}
    assert node.likely("a/web") == pytest.approx({A: 0.6, B: 0.2, C: 0.2}, abs=1e-4)
    assert backends(node, "weight") == {A: 300, B: 100, C: 100}
    assert flags(node) == 0  # it is the slots that say it
    assert node.apply(web(endpoints(*ALL))).writes() == {"weights": 1, "shares": 3}
    assert node.likely("a/web") == pytest.approx(dict.fromkeys(ALL, 1 / 3))
    assert (int(node.service("a/web")["cluster"]), node.tables.hash_writes()) == (word, writes)


def test_weight_0_gets_nothing_new_and_keeps_what_it_has(node: Node) -> None:
    node.apply(web(endpoints(*ALL, weights={B: 0})))
    assert node.likely("a/web")[B] == 0
    states = backends(node, "flags")
    assert states[B] == states[A] | consts.BACKEND_CLOSED
    node.apply(web(endpoints(*ALL)))
    assert set(backends(node, "flags").values()) == {states[A]}


def test_if_all_weights_are_0_everything_new_is_refused(node: Node) -> None:
    node.apply(web(endpoints(A, B, weights={A: 0, B: 0})))
    word = int(node.service("a/web")["cluster"])
    assert word & consts.REGION_CLOSED
    assert region_of(word)[1] == 2
    assert flags(node) & consts.SERVICE_CHOOSES
    node.apply(web(endpoints(A, B, weights={A: 0})))
    assert not int(node.service("a/web")["cluster"]) & consts.REGION_CLOSED
    assert flags(node) == 0


def test_a_region_of_shares_is_plain_for_the_next(node: Node) -> None:
    node.apply(web(endpoints(*ALL, weights={A: 1})))
    node.apply(gone=["a/web"])
    node.now += 5
    node.apply(web(endpoints(C, "10.0.0.4", "10.0.0.5")))
    assert not node.tables.slots.records["share"][region_of(node.service("a/web")["cluster"])[0]]
    assert len(set(node.likely("a/web").values())) == 1


# Algorithms


def test_the_way_to_other_nodes_changes_and_nothing_else(node: Node) -> None:
    node.apply(web(endpoints(*ALL)))
    before = node.service("a/web").copy()
    node.apply(web(endpoints(*ALL), Choice(dsr=True)))
    assert flags(node) == consts.SERVICE_DSR
    node.apply(web(endpoints(*ALL)))
    assert node.service("a/web") == before


@pytest.mark.parametrize(
    ("algorithm", "number"),
    [
        ("round-robin", consts.ALGORITHM_ROUND_ROBIN),
        ("least-connections", consts.ALGORITHM_LEAST_CONNECTIONS),
        ("maglev", consts.ALGORITHM_MAGLEV),
        ("source-hash", consts.ALGORITHM_SOURCE_HASH),
    ],
)
def test_an_algorithm_changes_and_nothing_else(node: Node, algorithm: str, number: int) -> None:
    node.apply(web(endpoints(*ALL)))
    word = int(node.service("a/web")["cluster"])
    node.apply(web(endpoints(*ALL), Choice(algorithm)))  # type: ignore[arg-type]
    assert node.service("a/web")["algorithm"] == number
    assert flags(node) & consts.SERVICE_CHOOSES
    assert bool(flags(node) & consts.SERVICE_PICKS_UP) == (algorithm == "maglev")
    assert int(node.service("a/web")["cluster"]) == word
    node.apply(web(endpoints(*ALL)))
    assert flags(node) == 0
    assert int(node.service("a/web")["cluster_table"]) == 0


def test_a_table_is_what_every_node_makes_of_it(node: Node) -> None:
    node.apply(resolved("a/other", endpoints("10.0.9.9")))  # ids are another node's own
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    other = Node()
    other.apply(web(endpoints(*ALL), Choice("maglev")))
    assert node.hashed("a/web") == other.hashed("a/web")
    assert len(node.hashed("a/web")) == maglev.size_for(3)


def test_a_table_changes_in_place_and_little(node: Node) -> None:
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    word, before = int(node.service("a/web")["cluster_table"]), node.hashed("a/web")
    plan = node.apply(web(endpoints(A, C), Choice("maglev")))
    after = node.hashed("a/web")
    assert int(node.service("a/web")["cluster_table"]) == word
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    assert plan.writes()["hash tables"] == moved
    assert before.count(B) <= moved < 1.1 * before.count(B)


def test_a_table_that_grows_has_another_place(node: Node) -> None:
    node = Node(FakeTables(endpoints=256, slots=1024))
    many = [f"10.0.1.{number}" for number in range(40)]
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    word = int(node.service("a/web")["cluster_table"])
    node.apply(web(endpoints(*many), Choice("maglev")))
    assert int(node.service("a/web")["cluster_table"]) != word
    assert set(node.hashed("a/web")) == set(many)
    assert node.planner.tables.regions.resting == maglev.size_for(3)


def test_there_is_a_table_of_the_local_set_where_that_is_used(node: Node) -> None:
    members = endpoints(*ALL, local=[B])
    node.apply(web(members, Choice("source-hash")))
    assert node.hashed("a/web", "local_table") == []
    node.apply(web(members, Choice("source-hash"), external_local=True))
    assert set(node.hashed("a/web", "local_table")) == {B}


def test_without_room_for_its_table_it_is_by_chance_and_said(node: Node) -> None:
    node.planner.tables.regions.take(node.planner.tables.regions.capacity - 1000, node.now)
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    assert [str(key) for key in node.planner.without_table.values()] == ["a/web"]
    assert int(node.service("a/web")["cluster_table"]) == 0
    assert flags(node) == consts.SERVICE_CHOOSES
    version = node.planner.version
    node.apply(gone=["a/web"])
    assert node.planner.without_table == {}
    assert node.planner.version != version


def test_who_lacks_a_table_gets_it_once_there_is_room(node: Node) -> None:
    planner = node.planner
    base = planner.tables.regions.take(planner.tables.regions.capacity - 1000, node.now)
    taken = planner.table_places
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    assert planner.table_places == taken + maglev.size_for(3)
    assert planner.due_tables() == []
    planner.tables.regions.give_back(base, planner.tables.regions.capacity - 1000)
    assert [str(key) for key in planner.due_tables()] == ["a/web"]
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    assert planner.due_tables() == []
    assert set(node.hashed("a/web")) == set(ALL)
    assert planner.table_places == maglev.size_for(3)


def test_a_table_where_none_can_be_is_made_anew(node: Node) -> None:
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    before = node.hashed("a/web")
    node.tables.services.records["cluster_table"][1] = 1 << 40 | 3
    node.restart()
    node.apply(web(endpoints(*ALL), Choice("maglev")))
    assert node.hashed("a/web") == before


# Near first


def test_near_ones_come_first(node: Node) -> None:
    choice = Choice(spill_over=1.5)
    node.apply(web(endpoints(*ALL, near=[C]), choice))
    record = node.service("a/web")
    base, _ = region_of(int(record["cluster"]))
    assert node.addresses(node.tables.slots.records["backend"][base : base + 1]) == [C]
    assert (record["near"], record["spill_over"]) == (1, 96)
    assert flags(node) == consts.SERVICE_CHOOSES
    # The same endpoints in another order are another set.
    node.apply(web(endpoints(*ALL, near=[B, C]), choice))
    assert node.service("a/web")["near"] == 2


@pytest.mark.parametrize("near", [[], [*ALL]])
def test_if_all_are_near_or_none_it_makes_no_difference(node: Node, near: list[str]) -> None:
    node.apply(web(endpoints(*ALL, near=near), Choice(spill_over=2.0)))
    assert flags(node) == 0
    assert node.service("a/web")["near"] == 0


@pytest.mark.parametrize(
    ("weights", "near"), [({B: 0}, 1), ({A: 0, B: 0}, 0), ({C: 0}, 0), ({A: 0, C: 0}, 0)]
)
def test_those_of_weight_0_are_neither_near_nor_far(
    node: Node, weights: dict[str, int], near: int
) -> None:
    """A and B are near. Where no part has anybody, there is only one."""
    node.apply(web(endpoints(*ALL, near=[A, B], weights=weights), Choice(spill_over=2.0)))
    assert node.service("a/web")["near"] == near
    if not near:
        likely = node.likely("a/web")
        assert {address for address, chance in likely.items() if chance} == {*ALL} - weights.keys()


# New ones


def warm(node: Node, ticks: float) -> Plan:
    node.now += ticks * TICK_SECONDS
    plan = node.planner.warm(node.now)
    for step in writes.STEPS:
        step(plan, node.tables)
    return plan


def test_a_service_that_is_new_has_no_new_endpoints(node: Node) -> None:
    node.apply(web(endpoints(*ALL), SLOW))
    assert backends(node, "since") == dict.fromkeys(ALL, 0)
    assert not node.planner.warming


def test_the_share_of_a_new_endpoint_grows(node: Node) -> None:
    node.apply(web(endpoints(A, B), SLOW))
    node.apply(web(endpoints(*ALL), SLOW))
    window = int(node.service("a/web")["slow_start"])
    assert window == 28
    for age in range(window):
        grown = (age + 1) / window
        assert node.likely("a/web")[C] == pytest.approx(grown / (2 + grown), abs=1e-4)
        plan = warm(node, 1)
        # A store per slot of its set at most, and nothing else.
        assert plan.writes().keys() <= {"shares"}
        assert sum(plan.writes().values()) <= 3
    assert not node.planner.warming
    assert node.likely("a/web") == pytest.approx(dict.fromkeys(ALL, 1 / 3))
    assert warm(node, 1).writes() == {}


def test_it_goes_on_growing_after_a_restart(node: Node) -> None:
    node.apply(web(endpoints(A), SLOW))
    node.apply(web(endpoints(A, B), SLOW))
    warm(node, 10)
    share = node.likely("a/web")[B]
    assert node.restart() == 0
    assert set(node.planner.warming) == {"a/web"}
    warm(node, 5)  # even before its object is known again
    assert node.likely("a/web")[B] > share
    assert node.apply(web(endpoints(A, B), SLOW)).writes() == {}
    share = node.likely("a/web")[B]
    node.now += 4 * TICK_SECONDS
    plan = node.apply(web(endpoints(A, B, C), SLOW))
    assert plan.writes()["backends"] == 1
    likely = node.likely("a/web")
    assert likely[C] < likely[B] < likely[A]
    assert likely[B] / likely[A] > share / (1 - share)


def test_without_slow_start_all_have_their_share_at_once(node: Node) -> None:
    node.apply(web(endpoints(A), SLOW))
    node.apply(web(endpoints(A, B), SLOW))
    node.apply(web(endpoints(A, B)))
    assert node.likely("a/web") == {A: 0.5, B: 0.5}
    assert not node.planner.warming


# Those that leave


@pytest.mark.parametrize(("seconds", "ticks"), [(0.0, 0), (30.0, 28)])
def test_flows_of_an_endpoint_that_leaves_have_a_deadline(
    node: Node, seconds: float, ticks: int
) -> None:
    choice = Choice(flows_leave=seconds)
    node.apply(web(endpoints(A, B), choice))
    plan = node.apply(web(endpoints(A), choice))
    ((number, tick),) = plan.ending
    assert tick == tick_at(node.now) + ticks
    record = node.tables.backends.records[number]
    assert record["since"] == tick
    assert record["flags"] == consts.BACKEND_ENDING
    assert node.restart() == 0  # it is no leftover


def test_so_have_those_of_a_service_that_goes(node: Node) -> None:
    node.apply(web(endpoints(A, B), Choice(flows_leave=60.0)))
    node.restart()
    assert len(node.apply(gone=["a/web"]).ending) == 2


def test_otherwise_they_are_kept(node: Node) -> None:
    node.apply(web(endpoints(A, B), SLOW))
    plan = node.apply(web(endpoints(A), SLOW))
    assert plan.ending == []
    assert not (node.tables.backends.records["flags"] & consts.BACKEND_ENDING).any()
