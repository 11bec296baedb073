"""Planning: what a change writes, and what a packet would find before and after."""

import random
from collections.abc import Iterable

import msgspec
import numpy as np
import pytest
from fake_tables import FakeTables

from lbctl import consts, filterbits, program, programmed
from lbctl.addresses import parse_address, parse_prefix
from lbctl.claims import frontend_key, marker_key
from lbctl.contents import region_of
from lbctl.plan import Plan, Planner
from lbctl.resolved import Endpoint, Frontend, FrontendKind, ResolvedPort
from lbctl.tables import Records

TCP = 6
NONE_SEEN = np.zeros(0, bool)


def endpoints(*places: str, local: Iterable[str] = ()) -> tuple[Endpoint, ...]:
    here = set(local)
    found = []
    for place in places:
        address, _, port = place.partition(":")
        found.append(Endpoint(parse_address(address), int(port or 80), place in here))
    return tuple(sorted(found))


def frontend(
    address: str, port: int = 80, kind: FrontendKind = FrontendKind.CLUSTER_IP
) -> Frontend:
    return Frontend(parse_address(address), port, TCP, kind)


def resolved(
    name: str,
    cluster: tuple[Endpoint, ...] = (),
    frontends: tuple[Frontend, ...] = (),
    local: tuple[Endpoint, ...] | None = None,
    local_drop: bool = False,
    external_local: bool = False,
    affinity_seconds: int = 0,
) -> ResolvedPort:
    return ResolvedPort(
        name=name,
        protocol=TCP,
        frontends=frontends,
        cluster=cluster,
        local=tuple(e for e in cluster if e.local) if local is None else local,
        cluster_drop=False,
        local_drop=local_drop,
        internal_local=False,
        external_local=external_local,
        affinity_seconds=affinity_seconds,
        source_ranges=(),
        warnings=(),
        hints="",
    )


class Node:
    """Planner and maps of one node, and a clock."""

    def __init__(self, tables: FakeTables | None = None) -> None:
        self.tables = tables or FakeTables()
        self.now = 100.0
        self.planner, self.leftovers = programmed.read(self.tables, self.now)

    def apply(self, *ports: ResolvedPort, gone: Iterable[str] = ()) -> Plan:
        self.now += 0.01
        changes: dict[str, ResolvedPort | None] = {p.name: p for p in ports}
        changes.update(dict.fromkeys(gone))
        plan = self.planner.plan(changes, self.now)
        program.apply(plan, self.tables)
        return plan

    def restart(self) -> int:
        """Returns how many stores the start itself made."""
        self.planner, self.leftovers = programmed.read(self.tables, self.now)
        return programmed.repair(self.planner, self.leftovers, self.tables)

    def lookup(self, address: str, port: int = 80, field: str = "cluster") -> list[str] | str:
        """What the programs would find: endpoints as text, or "miss", "refuse", "drop"."""
        key = self.tables.frontends.spec.key.pack(
            addr=parse_address(address), port=int.from_bytes(port.to_bytes(2, "big"), "little"),
            proto=TCP,
        )  # fmt: skip
        value = self.tables.frontends.get(key)
        if value is None:
            return "miss"
        entry = self.tables.frontends.spec.value.unpack(value)
        assert entry["self"] == key
        assert has_bits(
            self.tables.service_filter.records, filterbits.service_bits([entry["self"][:16]])
        )
        word = int(self.tables.services.records[field][entry["service"]])
        base, length = region_of(word)
        if not length:
            return "drop" if word == consts.REGION_DROP else "refuse"
        found = []
        for backend in self.tables.slots.records["backend"][base : base + length]:
            row = self.tables.backends.records[backend]
            assert row["flags"] & consts.BACKEND_SERVING
            assert row["service"] == entry["service"]
            assert has_bits(
                self.tables.backend_filter.records,
                filterbits.backend_bits([row["addr"].tobytes() + row["port"].tobytes()]),
            )
            address_bytes = row["addr"].tobytes()
            number = int.from_bytes(row["port"].tobytes(), "big")
            found.append(f"{'.'.join(map(str, address_bytes[12:]))}:{number}")
        return found


def has_bits(words: Records, bits: filterbits.Bits) -> bool:
    return bool(((words[bits >> 6] >> (bits & 63).astype(np.uint64)) & np.uint64(1)).all())


@pytest.fixture
def node() -> Node:
    return Node()


WEB = frontend("10.96.0.1")


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
    assert not node.tables.frontends.entries  # the marker too
    assert len(node.tables.names.entries) == 1
    assert node.planner.recover(node.now + 1, NONE_SEEN, NONE_SEEN).services == []
    seen = np.ones(64, bool)
    assert node.planner.recover(node.now + 3, seen, seen).services == []
    freed = node.planner.recover(node.now + 3, NONE_SEEN, NONE_SEEN)
    assert (freed.services, freed.backends) == ([1], [1])
    program.clear(freed, node.tables)
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
        program.clear(node.planner.recover(node.now, NONE_SEEN, NONE_SEEN), node.tables)
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


def test_the_first_keeps_an_address_and_the_other_gets_it_afterwards(node: Node) -> None:
    shared = frontend("192.0.2.1", 80, FrontendKind.EXTERNAL_IP)
    node.apply(resolved("a/first", endpoints("10.0.0.1"), (shared,)))
    plan = node.apply(resolved("a/second", endpoints("10.0.0.2"), (shared,)))
    [warning] = plan.warnings
    assert "192.0.2.1:80" in warning
    assert "a/first" in warning
    assert "a/second" in warning
    assert node.lookup("192.0.2.1") == ["10.0.0.1:80"]
    plan = node.apply(gone=["a/first"])
    assert not plan.frontends_gone  # it changes hands in one update
    assert node.lookup("192.0.2.1") == ["10.0.0.2:80"]
    node.apply(gone=["a/second"])
    assert node.lookup("192.0.2.1") == "miss"


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
    assert not plan.warnings
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


def test_changed_flags_of_an_address_are_written(node: Node) -> None:
    node.apply(resolved("a/web", (), (frontend("10.96.0.1", 80),)))
    plan = node.apply(resolved("a/web", (), (frontend("10.96.0.1", 80, FrontendKind(8)),)))
    assert [(service, flags) for _, service, flags in plan.frontends] == [(1, 8)]
    assert plan.frontends_gone == [marker_key(parse_address("10.96.0.1"))]


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


def mixed_ports(chance: random.Random, count: int) -> list[ResolvedPort]:
    ports = []
    for i in range(count):
        pool = [f"10.{i}.0.{j}" for j in range(1, 8)]
        chosen = chance.sample(pool, chance.randrange(8))
        members = endpoints(*chosen, local=chance.sample(chosen, len(chosen) // 2))
        frontends = (
            frontend(f"10.96.0.{i // 2}", 80 + i % 2),
            frontend("192.0.2.1", 30000 + chance.randrange(6), FrontendKind.NODE_PORT),
        )
        ports.append(
            resolved(
                f"ns/s{i}",
                members,
                frontends[: chance.randrange(1, 3)],
                external_local=chance.random() < 0.3,
                local_drop=chance.random() < 0.5,
                affinity_seconds=chance.choice((0, 60)),
            )
        )
    return ports


@pytest.mark.parametrize("seed", range(5))
def test_random_changes_and_restarts(seed: int) -> None:
    chance = random.Random(seed)
    node = Node(FakeTables(services=64, endpoints=2000, slots=6000))
    wanted: dict[str, ResolvedPort] = {}
    for step in range(150):
        changes = chance.sample(mixed_ports(chance, 12), chance.randrange(1, 6))
        gone = [n for n in wanted if chance.random() < 0.1 and n not in {p.name for p in changes}]
        plan = node.apply(*changes, gone=gone)
        assert not plan.failed
        wanted.update({p.name: p for p in changes})
        for name in gone:
            del wanted[name]
        check(node, wanted)
        if step % 10 == 0:
            node.now += 3
            program.clear(node.planner.recover(node.now, NONE_SEEN, NONE_SEEN), node.tables)
        if step % 7 == 0:
            before = node.tables.snapshot()
            assert node.restart() == 0
            resting = node.planner.services.keys() - wanted.keys()  # known by their names
            assert node.apply(*wanted.values(), gone=resting).writes() == {}
            assert node.tables.snapshot() == before


def check(node: Node, wanted: dict[str, ResolvedPort]) -> None:
    assert set(node.planner.services) == set(wanted)
    for name, port in wanted.items():
        state = node.planner.services[name]
        for field, members, drop in (
            ("cluster", port.cluster, port.cluster_drop),
            ("local", port.local, port.local_drop),
        ):
            word = int(node.tables.services.records[field][state.id])
            if not members:
                assert word == (consts.REGION_DROP if drop else 0)
            ids = node.planner._contents.region(word)
            rows = node.tables.backends.records[ids]
            assert (rows["service"] == state.id).all()
            assert (rows["flags"] & consts.BACKEND_SERVING).all()
            found = {r["addr"].tobytes() + r["port"].tobytes() for r in rows}
            assert found == {e.address + e.port.to_bytes(2, "big") for e in members}
        for claimed in port.frontends:
            key = frontend_key(claimed.address, claimed.port, claimed.protocol)
            owner = node.planner.claims.owner(key)
            assert owner in {s.id for s in node.planner.services.values()}
    bits = filterbits.backend_record_bits(node.tables.backends.records)
    assert (
        node.tables.backend_filter.records[bits >> 6] >> (bits & 63).astype(np.uint64) & 1
    ).all()
    keys, values = node.tables.frontends.read_all()
    assert len(keys) == len(node.planner.claims)
    assert (values["self"] == keys).all()


@pytest.mark.parametrize("seed", range(4))
def test_between_any_two_steps_a_packet_finds_the_old_or_the_new(seed: int) -> None:
    chance = random.Random(100 + seed)
    node = Node(FakeTables(services=64, endpoints=2000, slots=6000))
    before: dict[str, ResolvedPort] = {}
    for _ in range(60):
        after = dict(before)
        for port in chance.sample(mixed_ports(chance, 12), chance.randrange(1, 6)):
            index = int(port.name.removeprefix("ns/s"))
            own = (frontend(f"10.96.0.{index}", 80), frontend(f"10.96.1.{index}", 443))
            members = port.cluster or endpoints("10.9.9.9")
            after[port.name] = msgspec.structs.replace(
                port, cluster=members, frontends=own[: chance.randrange(1, 3)]
            )
        for name in [n for n in after if chance.random() < 0.1]:
            del after[name]
        changes: dict[str, ResolvedPort | None] = dict.fromkeys(before)
        node.now += 0.5
        plan = node.planner.plan(changes | after, node.now)
        for step in program.STEPS:
            step(plan, node.tables)
            for name in before.keys() | after.keys():
                check_step(node, before.get(name), after.get(name))
        before = after


def check_step(node: Node, old: ResolvedPort | None, new: ResolvedPort | None) -> None:
    """Addresses in both must lead to either set; others to theirs or nowhere."""
    versions = [port for port in (old, new) if port]
    for place in {f for port in versions for f in port.frontends}:
        serving = [port for port in versions if place in port.frontends]
        address = ".".join(map(str, place.address[12:]))
        found = node.lookup(address, place.port)  # asserts that each backend serves
        sets = [sorted_places(port.cluster) for port in versions]
        assert found in sets or (found == "miss" and len(serving) < 2), (found, sets)


def sorted_places(members: tuple[Endpoint, ...]) -> list[str]:
    return [f"{'.'.join(map(str, e.address[12:]))}:{e.port}" for e in members]


def full(node: Node) -> list[ResolvedPort]:
    ports = [
        resolved("a/web", endpoints("10.0.0.1", "10.0.0.2"), (WEB,)),
        resolved("a/dns", endpoints("10.0.0.3"), (frontend("10.96.0.2", 53),)),
    ]
    node.apply(*ports)
    return ports


def test_a_foreign_frontend_is_replaced_or_removed(node: Node) -> None:
    ports = full(node)
    before = node.tables.snapshot()
    table = node.tables.frontends
    stray = table.spec.key.pack(addr=parse_address("10.96.0.9"), port=80, proto=TCP)
    web = next(key for key in table.entries if key[18] and key[15] == 1)
    values = np.zeros(2, table.spec.value.dtype)
    values["service"] = 77, 1
    values["flags"] = 1
    values["self"] = np.frombuffer(stray + stray, table.spec.key.dtype)  # not web's own
    table.put_many(np.frombuffer(stray + web, table.spec.key.dtype), values)
    marker = next(key for key in table.entries if not key[18])
    table.delete(marker)
    node.restart()
    assert node.leftovers.strays == 2
    assert stray in table.entries  # nothing is deleted at start
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
    program.apply(plan, node.tables)
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
    program.clear(freed, node.tables)
    assert len(names.entries) == 2


def test_missing_filter_bits_are_set_at_start(node: Node) -> None:
    full(node)
    node.tables.backend_filter.records[:] = 0
    node.tables.service_filter.records[:] = 0
    assert node.restart() == 7
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
