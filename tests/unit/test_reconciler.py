"""From updates to maps: what waits for the first list, what is retried, what is cleaned up."""

import time

import msgspec
import numpy as np
import pytest

from ebpf.errors import KernelError
from lbctl.addresses import format_address, parse_address, parse_prefix
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key
from lbctl.model.records import (
    Hints,
    Protocol,
    ServiceObjects,
    ServicePort,
    SlicePort,
)
from lbctl.plan import alloc
from lbctl.reconcile import housekeeping
from lbctl.reconcile.reconciler import RETRY_SECONDS, Reconciler
from lbctl.resolve.node import NodeFacts
from tests.support.fake_tables import FakeHash, FakeTables
from tests.support.reconciling import NODE, objects, update


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def tables(clock: Clock) -> FakeTables:
    return FakeTables()


def synced(tables: FakeTables, *found: ServiceObjects) -> Reconciler:
    reconciler = Reconciler(tables, NODE, tables)
    reconciler.take(update(*found))
    reconciler.apply(complete=True)
    return reconciler


def sweep(reconciler: Reconciler, clock: Clock, seconds: float) -> None:
    clock.now += seconds
    reconciler.housekeeper.step(clock.now)
    while reconciler.housekeeper.running():
        reconciler.housekeeper.step(clock.now)


WEB = objects("web", "10.96.0.1", ["10.0.0.1", "10.0.0.2"])
DNS = objects("dns", "10.96.0.2", ["10.0.0.3"], port=53)


def test_services_come_and_go(tables: FakeTables) -> None:
    reconciler = synced(tables, WEB, DNS)
    assert (reconciler.services, reconciler.planner.backend_ids.in_use) == (2, 3)
    reconciler.take(update(gone=["web"]))
    assert reconciler.apply(complete=True)
    assert (reconciler.services, reconciler.planner.backend_ids.in_use) == (1, 1)
    assert len(tables.frontend_entries()) == 2


def test_two_objects_whose_names_look_like_one_are_two(tables: FakeTables) -> None:
    """No API server lets a service have a colon in its name, a file may."""
    web = objects("web", "10.96.0.1", ["10.0.0.1"])
    assert web.service
    named = ServiceObjects(
        msgspec.structs.replace(web.service, ports=(ServicePort("http", Protocol.TCP, 80),)),
        (msgspec.structs.replace(web.slices[0], ports=(SlicePort("http", Protocol.TCP, 8080),)),),
    )
    odd = objects("web:http", "10.96.0.2", ["10.0.0.2"])
    reconciler = synced(tables, named, odd)
    assert (len(reconciler.planner.services), reconciler.planner.backend_ids.in_use) == (2, 2)
    reconciler.take(update(gone=["web:http"]))
    reconciler.apply(complete=True)
    assert list(reconciler.planner.services) == ["default/web:http/TCP/v4"]
    assert reconciler.planner.backend_ids.in_use == 1


def test_what_became_of_hints_is_told_once(tables: FakeTables) -> None:
    reconciler = synced(tables, WEB)
    assert reconciler.take_hints() == {}
    assert reconciler.take_hints() is None
    hinted = objects("web", "10.96.0.1", ["10.0.0.1"], hints=Hints(nodes=("node1",)))
    for _ in range(2):  # the second says nothing new
        reconciler.take(update(hinted, DNS))
        reconciler.apply(complete=True)
    text = "node hints used: 1 of 1 for node node1"
    assert reconciler.take_hints() == {"default/web/TCP/v4": text}
    assert reconciler.take_hints() is None
    reconciler.take(update(gone=["web"]))
    reconciler.apply(complete=True)
    assert reconciler.take_hints() == {}


def test_a_restart_without_changes_writes_nothing(tables: FakeTables) -> None:
    synced(tables, WEB, DNS)
    before, writes, words = tables.snapshot(), tables.hash_writes(), tables.word_stores()
    reconciler = synced(tables, DNS, WEB)  # in any order
    assert tables.snapshot() == before
    assert (tables.hash_writes(), tables.word_stores()) == (writes, words)
    assert reconciler.services == 2


def test_nothing_goes_before_the_list_is_complete(tables: FakeTables) -> None:
    synced(tables, WEB, DNS)
    frontends = tables.frontend_entries()
    reconciler = Reconciler(tables, NODE)
    reconciler.take(update(WEB, complete=False))  # a manifest cannot be read yet
    reconciler.apply(complete=False)
    assert tables.frontend_entries() == frontends
    reconciler.apply(complete=True)
    assert len(tables.frontend_entries()) == 2
    assert list(reconciler.planner.services) == ["default/web/TCP/v4"]


def test_frontends_of_nobody_go_with_the_first_complete_list(tables: FakeTables) -> None:
    synced(tables, WEB)
    stray = frontend_key(parse_address("10.96.0.9"), 80, 6)
    Frontends(tables.frontends).put([(stray, 60, consts.FRONTEND_CLUSTER_IP)])
    synced(tables, WEB)
    assert stray not in tables.frontend_entries()


def flags_of(tables: FakeTables) -> dict[tuple[str, int], int]:
    """Of every frontend, by address and port."""
    return {
        (format_address(key[:16]), int.from_bytes(key[16:18], "big")): flags
        for key, (_, flags) in tables.frontend_entries().items()
    }


def test_a_cluster_ip_of_the_node_itself_is_shared_with_the_stack(tables: FakeTables) -> None:
    """Its frontends and its marker say so, and a restart has nothing to write."""
    reconciler = synced(tables, DNS)
    alone = flags_of(tables)
    own = NodeFacts("node1", addresses=(parse_address("10.96.0.2"),))
    reconciler.set_node(own)
    assert reconciler.apply(complete=True)
    wanted = {place: flags | consts.FRONTEND_SHARED for place, flags in alone.items()}
    assert flags_of(tables) == wanted
    again = Reconciler(tables, own)
    again.take(update(DNS))
    assert not again.apply(complete=True)
    reconciler.set_node(NODE)
    reconciler.apply(complete=True)
    assert flags_of(tables) == alone
    assert reconciler.warnings() == []


def test_addresses_of_others_in_the_service_range_are_marked(tables: FakeTables) -> None:
    """A service that another proxy serves, and an address of the node that no service has; without
    a range nothing there is dropped, and nothing need be marked."""
    reconciler = synced(tables, WEB)
    ours = flags_of(tables)
    other = objects("other", "10.96.0.99", ["10.0.0.9"])
    assert other.service
    other = msgspec.structs.replace(
        other, service=msgspec.structs.replace(other.service, left_alone="another proxy's")
    )
    reconciler.take(update(other))
    reconciler.apply(complete=True)
    assert flags_of(tables) == ours
    own = tuple(map(parse_address, ("10.96.0.53", "192.0.2.1")))
    ranged = NodeFacts("node1", addresses=own, service_cidrs=(parse_prefix("10.96.0.0/16"),))
    reconciler.set_node(ranged)
    assert reconciler.apply(complete=True)
    marks = {("10.96.0.99", 0), ("10.96.0.53", 0)}
    assert flags_of(tables) == ours | dict.fromkeys(marks, consts.FRONTEND_SHARED)
    reconciler.take(update(gone=["other"]))
    assert reconciler.apply(complete=True)
    assert flags_of(tables) == ours | {("10.96.0.53", 0): consts.FRONTEND_SHARED}


def test_equal_facts_about_the_node_cost_nothing(tables: FakeTables) -> None:
    reconciler = synced(tables, WEB)
    reconciler.set_node(NodeFacts("node1"))
    assert not reconciler.apply(complete=True)


def test_what_does_not_fit_is_told_and_tried_again(clock: Clock) -> None:
    tables = FakeTables(services=16, endpoints=13, slots=64)
    reconciler = synced(tables, WEB)
    big = objects("big", "10.96.0.3", [f"10.0.2.{i}" for i in range(1, 7)])
    reconciler.take(update(big))
    reconciler.apply(complete=True)
    assert "default/big" in reconciler.warnings()[0]
    assert "--endpoints" in reconciler.warnings()[0]
    assert reconciler.waiting
    assert reconciler.retry_at() is None  # only that somebody leaves can help
    reconciler.take(update(gone=["web"]))
    reconciler.apply(complete=True)
    assert reconciler.retry_at() == clock.now + RETRY_SECONDS
    sweep(reconciler, clock, alloc.GRACE_SECONDS + 1)
    assert reconciler.freed()
    assert reconciler.apply(complete=True)
    assert reconciler.warnings() == []
    assert reconciler.retry_at() is None
    assert reconciler.planner.backend_ids.in_use == 6
    assert not reconciler.freed()


def test_a_failing_map_is_read_back_and_written_again(
    tables: FakeTables, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reconciler = synced(tables, WEB)

    def full(self: FakeHash, keys: object, values: object) -> int:
        raise KernelError("map frontends is full", 7)

    with monkeypatch.context() as patched:
        patched.setattr(FakeHash, "put_many", full)
        reconciler.take(update(DNS))
        reconciler.apply(complete=True)
    assert any("frontends" in warning for warning in reconciler.warnings())
    assert reconciler.retry_at() == clock.now + RETRY_SECONDS
    reconciler.apply(complete=True)
    assert len(tables.frontend_entries()) == 4
    assert len(tables.names.entries) == 2
    assert reconciler.planner.backend_ids.in_use == 3


def test_ids_and_endpoints_return_after_a_sweep(tables: FakeTables, clock: Clock) -> None:
    reconciler = synced(tables, WEB, DNS)
    known = tables.endpoint_entries()
    reconciler.take(update(gone=["web"]))
    reconciler.apply(complete=True)
    sweep(reconciler, clock, 1.0)
    assert tables.endpoint_entries() == known  # flows to them may have begun after the sweep passed
    assert len(tables.names.entries) == 2
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert len(tables.names.entries) == 1
    used = tables.backends.records["port"] != 0
    assert np.count_nonzero(used) == 1
    assert len(tables.endpoint_entries()) == 1


def test_a_flow_keeps_its_ids_and_its_endpoint(tables: FakeTables, clock: Clock) -> None:
    reconciler = synced(tables, WEB)
    backend = int(np.flatnonzero(tables.backends.records["port"])[0])
    four, _ = tables.flow_tables
    ends = ("10.1.0.7", 4000), ("10.96.0.1", 80), ("10.0.0.1", 8080)
    places = four.add_flow(6, *ends, service=1, backend=backend)
    tables.config.records["established_timeout"] = 1000
    reconciler.take(update(gone=["web"]))
    reconciler.apply(complete=True)
    for _ in range(3):
        sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert len(tables.endpoint_entries()) == 1
    assert len(tables.names.entries) == 1
    assert tables.backends.records["port"][backend]
    four.cells["state"][places] = consts.STATE_FREE
    for _ in range(2):
        sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert not tables.endpoint_entries()
    assert not tables.names.entries


def test_ids_rest_while_flows_are_counted(tables: FakeTables, clock: Clock) -> None:
    """One may have been opened behind the sweep's back."""
    reconciler = synced(tables, WEB)
    backend = int(np.flatnonzero(tables.backends.records["port"])[0])
    tables.backend_live.records[backend] = tables.service_counters.records["live"][1] = 1
    tables.service_counters.records["connections"] += 1  # keeps the audit from setting it right
    reconciler.take(update(gone=["web"]))
    reconciler.apply(complete=True)
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert tables.backends.records["port"][backend]
    assert len(tables.names.entries) == 1
    tables.backend_live.records[backend] = tables.service_counters.records["live"][1] = 0
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert not tables.backends.records["port"].any()
    assert not tables.names.entries


def test_flows_of_backends_are_ended_when_asked(tables: FakeTables, clock: Clock) -> None:
    reconciler = synced(tables, WEB)
    four, _ = tables.flow_tables
    ends = ("10.1.0.7", 4000), ("10.96.0.1", 80), ("10.0.0.1", 8080)
    four.add_flow(6, *ends, service=1, backend=2)
    tables.config.records["established_timeout"] = 1000
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    keeper = reconciler.housekeeper
    assert keeper.due() > clock.now
    keeper.end_flows([2])
    assert keeper.due() <= clock.now
    sweep(reconciler, clock, 0.0)
    assert not four.rooms().used
    assert [end.why for end in four.ended] == [consts.END_BACKEND]
    assert keeper.due() > clock.now


def test_sweeps_follow_each_other_while_flows_wait_for_their_end(
    tables: FakeTables, clock: Clock
) -> None:
    reconciler = synced(tables, WEB)
    four, _ = tables.flow_tables
    tables.config.records["time_wait_timeout"] = 1000
    ends = ("10.1.0.7", 4000), ("10.96.0.1", 80), ("10.0.0.1", 8080)
    rests = {"flags": consts.CELL_FIRST}
    places = four.add_flow(6, *ends, state=consts.STATE_TIME_WAIT, reply=rests)
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert reconciler.housekeeper.due() == clock.now + housekeeping.BUSY_SWEEP_SECONDS
    four.cells["state"][places] = consts.STATE_FREE
    sweep(reconciler, clock, housekeeping.SWEEP_SECONDS + 1)
    assert reconciler.housekeeper.due() == clock.now + housekeeping.SWEEP_SECONDS


def test_full_tables_are_named_with_their_flag_unless_they_grow(
    tables: FakeTables, clock: Clock
) -> None:
    four, _ = tables.flow_tables
    for may_grow_to, said in ((0, True), (8192, False)):
        keeper = Reconciler(tables, NODE, tables, most_cells=may_grow_to).housekeeper
        four.cells["state"][:3300] = consts.STATE_FREE
        assert keeper.warnings() == []
        four.cells["state"][:3300] = consts.STATE_ESTABLISHED
        warnings = keeper.warnings()
        assert bool(warnings) == said
        for warning in warnings:
            assert "flows4" in warning
            assert "--flows" in warning
            assert "3,300 of 4,096" in warning
