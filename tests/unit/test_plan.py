"""Planning: what a change writes."""

import msgspec
import numpy as np
import pytest

from lbctl.addresses import format_address, format_endpoint, parse_address, parse_prefix
from lbctl.datapath import consts
from lbctl.datapath.records import frontend_key, marker_key
from lbctl.program import writes
from lbctl.resolve.ports import FrontendKind
from tests.support.fake_tables import FakeTables
from tests.support.planning import NONE_SEEN, TCP, WEB, Node, endpoints, frontend, resolved


@pytest.fixture
def node() -> Node:
    return Node()


def test_a_new_service(node: Node) -> None:
    plan = node.apply(resolved("a/web", endpoints("10.0.0.1", "10.0.0.2"), (WEB,)))
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80", "10.0.0.2:80"]
    assert node.lookup("10.96.0.1", field="local") == "refuse"
    assert plan.writes() == {
        "names": 1,
        "backends": 2,
        "slots": 2,
        "region words": 1,
        "frontends": 2,  # and the address's marker
    }


def test_one_changed_endpoint_costs_what_changed(node: Node) -> None:
    before = endpoints(*(f"10.0.0.{i}" for i in range(1, 11)))
    after = endpoints(*(f"10.0.0.{i}" for i in range(2, 12)))
    node.apply(resolved("a/web", before, (WEB,)))
    hash_writes, words = node.tables.hash_writes(), node.tables.word_stores()
    plan = node.apply(resolved("a/web", after, (WEB,)))
    assert plan.writes() == {"backends": 1, "backend flags": 1, "slots": 10, "region words": 1}
    assert node.tables.hash_writes() == hash_writes
    assert node.tables.word_stores() == words + 1
    assert node.lookup("10.96.0.1") == [f"10.0.0.{i}:80" for i in range(2, 12)]


def test_the_same_again_writes_nothing(node: Node) -> None:
    port = resolved("a/web", endpoints("10.0.0.1", local=["10.0.0.1"]), (WEB,), affinity_seconds=9)
    node.apply(port)
    assert node.apply(port).writes() == {}


def test_equal_sets_share_a_region(node: Node) -> None:
    here = endpoints("10.0.0.1", "10.0.0.2", local=["10.0.0.1", "10.0.0.2"])
    plan = node.apply(resolved("a/web", here, (WEB,)))
    assert plan.writes()["slots"] == 2
    state = node.planner.services["a/web"]
    assert state.cluster == state.local
    # They part: only the set that changed gets a region.
    more = here + endpoints("10.0.0.3")
    plan = node.apply(resolved("a/web", more, (WEB,), local=here))
    assert plan.writes() == {"backends": 1, "slots": 3, "region words": 1}
    assert node.lookup("10.96.0.1", field="local") == ["10.0.0.1:80", "10.0.0.2:80"]


def test_an_endpoint_that_leaves_stops_serving_and_returns_with_a_fresh_id(node: Node) -> None:
    both = resolved("a/web", endpoints("10.0.0.1", "10.0.0.2"), (WEB,))
    node.apply(both)
    [old] = node.planner._contents.region(node.planner.services["a/web"].cluster)[1:]
    node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,)))
    assert not node.tables.backends.records["flags"][old]
    node.apply(both)
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80", "10.0.0.2:80"]
    assert not node.tables.backends.records["flags"][old]


def test_flags_say_which_sets_an_endpoint_is_in(node: Node) -> None:
    near, far = endpoints("10.0.0.1", local=["10.0.0.1"]), endpoints("10.0.0.2")
    node.apply(resolved("a/web", far, (WEB,), local=near))
    rows = node.tables.backends.records
    flags = {bytes(r["addr"].tobytes())[-1]: int(r["flags"]) for r in rows if r["port"]}
    assert flags == {
        2: consts.BACKEND_SERVING | consts.BACKEND_IN_CLUSTER,
        1: consts.BACKEND_SERVING | consts.BACKEND_LOCAL | consts.BACKEND_IN_LOCAL,
    }
    plan = node.apply(resolved("a/web", near, (WEB,), local=near))
    assert len(plan.raised) == 1  # in both now; set before the switch
    assert plan.raised[0][1] & consts.BACKEND_IN_CLUSTER


def test_an_empty_set_refuses_or_drops(node: Node) -> None:
    node.apply(resolved("a/web", (), (WEB,)))
    assert node.lookup("10.96.0.1") == "refuse"
    node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,), local_drop=True))
    assert node.lookup("10.96.0.1", field="local") == "drop"


def test_a_removed_service_is_gone_but_its_id_and_name_rest(node: Node) -> None:
    node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,)))
    node.apply(gone=["a/web"])
    assert node.lookup("10.96.0.1") == "miss"
    assert not node.tables.frontend_entries()  # the marker too
    assert len(node.tables.names.entries) == 1
    assert node.planner.recover(node.now + 1, NONE_SEEN, NONE_SEEN).services == []
    seen = np.ones(64, bool)
    assert node.planner.recover(node.now + 3, seen, seen).services == []
    freed = node.planner.recover(node.now + 3, NONE_SEEN, NONE_SEEN)
    assert (freed.services, freed.backends) == ([1], [1])
    writes.clear(freed, node.tables)
    assert not node.tables.names.entries
    assert node.tables.backends.records["port"].max() == 0
    assert node.tables.backends.records["generation"][1] == 1


def test_a_reused_backend_id_has_another_generation(node: Node) -> None:
    generations = []
    for _ in range(300):
        node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,)))
        [number] = node.planner._contents.region(node.planner.services["a/web"].cluster)
        assert number == 1
        generations.append(int(node.tables.backends.records["generation"][1]))
        node.apply(resolved("a/web", (), (WEB,)))
        node.now += 3
        writes.clear(node.planner.recover(node.now, NONE_SEEN, NONE_SEEN), node.tables)
    assert generations == [(i + 1) % 256 for i in range(300)]


def test_a_service_that_returns_keeps_its_id(node: Node) -> None:
    port = resolved("a/web", endpoints("10.0.0.1"), (WEB,))
    node.apply(port)
    node.apply(gone=["a/web"])
    node.apply(resolved("a/other", (), ()))
    plan = node.apply(port)
    assert not plan.names
    assert node.planner.services["a/web"].id == 1
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80"]
    freed = node.planner.recover(node.now + 10, NONE_SEEN, NONE_SEEN)
    assert freed.services == []


def rivals(node: Node) -> list[tuple[str, str, list[str]]]:
    """Per contested place: who has it, who waits."""
    return [
        (format_endpoint(key[:16], int.from_bytes(key[16:18], "big")), o.name, [s.name for s in w])
        for key, o, w in node.planner.contested()
    ]


SHARED = frontend("192.0.2.1", 80, FrontendKind.EXTERNAL_IP)


def test_the_older_has_an_address_whoever_comes_first(node: Node) -> None:
    old = resolved("a/z-old", endpoints("10.0.0.1"), (SHARED,), seniority=b"1")
    young = resolved("a/a-young", endpoints("10.0.0.2"), (SHARED,), seniority=b"2")
    node.apply(young)
    plan = node.apply(old)
    assert len(plan.frontends) == 1  # it changes hands in one update
    assert not plan.frontends_gone
    assert node.lookup("192.0.2.1") == ["10.0.0.1:80"]
    assert rivals(node) == [("192.0.2.1:80", "a/z-old", ["a/a-young"])]
    node.apply(gone=["a/z-old"])
    assert node.lookup("192.0.2.1") == ["10.0.0.2:80"]
    assert rivals(node) == []
    node.apply(gone=["a/a-young"])
    assert node.lookup("192.0.2.1") == "miss"


def test_without_a_date_names_decide(node: Node) -> None:
    for name in ("a/second", "a/first"):
        node.apply(resolved(name, endpoints(f"10.0.0.{len(name)}"), (SHARED,)))
    assert rivals(node) == [("192.0.2.1:80", "a/first", ["a/second"])]
    # One that says how old it is goes before.
    node.apply(resolved("a/third", endpoints("10.0.0.3"), (SHARED,), seniority=b"9"))
    assert node.lookup("192.0.2.1") == ["10.0.0.3:80"]


def test_a_cluster_ip_beats_every_other_kind_of_address(node: Node) -> None:
    for turn, kind in enumerate(
        (FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT)
    ):
        thief = resolved(
            f"a/thief{turn}", endpoints("10.0.0.9"), (frontend("10.96.0.1", 80, kind),),
            seniority=b"1",
        )  # fmt: skip
        node.apply(thief)
    assert node.lookup("10.96.0.1") == ["10.0.0.9:80"]
    owner = resolved("a/owner", endpoints("10.0.0.1"), (WEB,), seniority=b"8")
    node.apply(owner)
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80"]
    # Also when it was deleted and made again, and is younger still.
    node.apply(gone=["a/owner"])
    node.apply(msgspec.structs.replace(owner, seniority=b"9"))
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80"]


def test_an_object_made_again_is_younger_than_it_was(node: Node) -> None:
    first = resolved("a/first", endpoints("10.0.0.1"), (SHARED,), seniority=b"1")
    second = resolved("a/second", endpoints("10.0.0.2"), (SHARED,), seniority=b"2")
    node.apply(first, second)
    assert node.lookup("192.0.2.1") == ["10.0.0.1:80"]
    node.apply(msgspec.structs.replace(first, seniority=b"3"))  # seen as one change
    assert node.lookup("192.0.2.1") == ["10.0.0.2:80"]
    node.apply(msgspec.structs.replace(first, seniority=b"1"))
    assert node.lookup("192.0.2.1") == ["10.0.0.1:80"]


def test_a_kind_that_changes_changes_the_rank(node: Node) -> None:
    address = frontend("10.96.0.1", 80, FrontendKind.EXTERNAL_IP)
    node.apply(
        resolved("a/first", endpoints("10.0.0.1"), (address,), seniority=b"1"),
        resolved("a/second", endpoints("10.0.0.2"), (address,), seniority=b"2"),
    )
    node.apply(resolved("a/second", endpoints("10.0.0.2"), (WEB,), seniority=b"2"))
    assert node.lookup("10.96.0.1") == ["10.0.0.2:80"]
    node.apply(resolved("a/second", endpoints("10.0.0.2"), (address,), seniority=b"2"))
    assert node.lookup("10.96.0.1") == ["10.0.0.1:80"]


def test_one_who_waits_may_give_up(node: Node) -> None:
    shared = frontend("192.0.2.1", 80, FrontendKind.EXTERNAL_IP)
    for name in ("a/first", "a/second", "a/third"):
        node.apply(resolved(name, endpoints("10.0.0.1"), (shared,)))
    node.apply(gone=["a/second"])
    node.apply(gone=["a/first"])
    key = frontend_key(shared.address, 80, TCP)
    assert node.planner.claims.owner(key) == node.planner.services["a/third"].id


def test_an_address_moves_between_services_in_one_step(node: Node) -> None:
    node.apply(resolved("a/old", endpoints("10.0.0.1"), (WEB,)))
    plan = node.apply(resolved("a/new", endpoints("10.0.0.2"), (WEB,)), gone=["a/old"])
    assert not plan.frontends_gone
    assert rivals(node) == []
    assert node.lookup("10.96.0.1") == ["10.0.0.2:80"]


def test_markers_are_counted_by_address(node: Node) -> None:
    node.apply(
        resolved("a/web:http", (), (frontend("10.96.0.1", 80),)),
        resolved("a/web:https", (), (frontend("10.96.0.1", 443),)),
    )
    marker = marker_key(parse_address("10.96.0.1"))
    plan = node.apply(gone=["a/web:http"])
    assert marker not in plan.frontends_gone
    plan = node.apply(gone=["a/web:https"])
    assert marker in plan.frontends_gone


def markers(node: Node) -> dict[str, int]:
    """Flags by address, as the map has them."""
    found = node.tables.frontend_entries().items()
    return {format_address(k[:16]): flags for k, (_, flags) in found if k[16:] == bytes(3)}


def test_markers_say_whose_else_an_address_is(node: Node) -> None:
    """The node's own matter where there is a ClusterIP, those of other proxies in any case."""
    ours, shared = consts.FRONTEND_ADDRESS, consts.FRONTEND_SHARED
    cluster_ip, other, idle = map(parse_address, ("10.96.0.1", "10.96.0.99", "192.0.2.1"))
    node.apply(resolved("a/web", (), (WEB,)))
    own, foreign = frozenset({cluster_ip, idle}), frozenset({other})
    assert node.planner.claims.share(own, foreign)
    assert not node.planner.claims.share(own, foreign)
    node.apply()
    wanted = {"10.96.0.1": ours | shared, "10.96.0.99": shared}
    assert markers(node) == wanted
    node.restart()
    assert node.leftovers.strays == 0
    assert not node.planner.claims.share(frozenset({cluster_ip}), foreign)
    assert node.apply(resolved("a/web", (), (WEB,))).writes() == {}
    node.apply(gone=["a/web"])  # whoever has the address, no service of ours has it any more
    assert markers(node) == {"10.96.0.99": shared}
    node.planner.claims.share(own, frozenset())
    node.apply(resolved("a/web", (), (WEB,)))
    assert markers(node) == {"10.96.0.1": ours | shared}
    node.planner.claims.share(frozenset(), frozenset())
    node.apply()
    assert markers(node) == {"10.96.0.1": ours}


def test_changed_flags_of_an_address_are_written(node: Node) -> None:
    node.apply(resolved("a/web", (), (frontend("10.96.0.1", 80),)))
    plan = node.apply(
        resolved("a/web", (), (frontend("10.96.0.1", 80, FrontendKind.LOAD_BALANCER),))
    )
    own, marker = frontend_key(parse_address("10.96.0.1"), 80, TCP), marker_key(WEB.address)
    assert sorted(plan.frontends) == [(marker, 0, consts.FRONTEND_OUTER), (own, 1, 8)]
    assert not plan.frontends_gone


def test_an_outer_address_is_marked_as_no_cluster_ip(node: Node) -> None:
    """Until the last of its frontends goes; and a ClusterIP may be both."""
    outer, both = consts.FRONTEND_OUTER, consts.FRONTEND_OUTER | consts.FRONTEND_ADDRESS
    ports = [
        resolved(f"a/{n}", (), (frontend("192.0.2.1", n, FrontendKind.EXTERNAL_IP),))
        for n in (80, 81)
    ]
    node.apply(*ports)
    assert markers(node) == {"192.0.2.1": outer}
    node.apply(resolved("a/web", (), (frontend("192.0.2.1", 82),)), gone=["a/80"])
    assert markers(node) == {"192.0.2.1": both}
    node.restart()
    assert node.planner.claims.share(frozenset(), frozenset()) is False
    assert node.apply(*ports[1:]).writes() == {}
    node.apply(gone=["a/81"])
    assert markers(node) == {"192.0.2.1": consts.FRONTEND_ADDRESS}
    node.apply(gone=["a/web"])
    assert markers(node) == {}


def test_source_ranges_come_before_the_address_and_go_after_it(node: Node) -> None:
    kind = FrontendKind.LOAD_BALANCER | FrontendKind.SOURCE_RANGES
    guarded = (frontend("192.0.2.9", 80, kind),)
    ranges = (parse_prefix("198.51.100.0/24"), parse_prefix("203.0.113.0/24"))
    port = resolved("a/web", endpoints("10.0.0.1"), guarded)
    plan = node.apply(msgspec.structs.replace(port, source_ranges=ranges))
    assert plan.ranges == [(1, r) for r in ranges]
    assert len(node.tables.source_ranges.entries) == 2
    plan = node.apply(msgspec.structs.replace(port, source_ranges=ranges[1:]))
    assert plan.ranges_gone == [(1, ranges[0])]
    assert not plan.ranges
    plan = node.apply(gone=["a/web"])
    assert plan.ranges_gone == [(1, ranges[1])]
    assert not node.tables.source_ranges.entries


def test_what_does_not_fit_changes_nothing_and_names_the_flag() -> None:
    node = Node(FakeTables(services=8, endpoints=6, slots=64))
    node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,)))
    before = node.tables.snapshot()
    many = endpoints(*(f"10.0.1.{i}" for i in range(1, 9)))
    plan = node.apply(resolved("a/web", many, (WEB,)), resolved("a/big", many, ()))
    assert set(plan.failed) == {"a/web", "a/big"}
    assert "--endpoints" in plan.failed["a/web"].hint
    assert node.tables.snapshot() == before
    # Everything that was taken on the way was given back.
    plan = node.apply(resolved("a/web", endpoints("10.0.0.1", "10.0.0.2"), (WEB,)))
    assert not plan.failed


def test_slots_that_do_not_fit_give_the_ids_back() -> None:
    node = Node(FakeTables(services=8, endpoints=64, slots=5))
    plan = node.apply(resolved("a/web", endpoints(*(f"10.0.0.{i}" for i in range(1, 7))), (WEB,)))
    assert "slots" in plan.failed["a/web"].message
    node.apply(resolved("a/web", endpoints("10.0.0.1"), (WEB,)))
    assert node.planner.services["a/web"].id == 1
    assert node.planner.backend_ids.in_use == 1


def test_long_names_stay_apart_and_are_recognised(node: Node) -> None:
    long = "n" * 63 + "/" + "s" * 63 + ":" + "p" * 60
    node.apply(resolved(long + "1/TCP/v4", (), ()), resolved(long + "2/TCP/v4", (), ()))
    assert len(node.planner.services) == 2
    node.restart()
    assert node.apply(resolved(long + "1/TCP/v4", (), ())).writes() == {}
