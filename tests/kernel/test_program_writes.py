"""Programming real maps: what is in them afterwards, what a restart writes, what a change costs."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ebpf import instance
from ebpf.compile import compiler
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from ebpf.maps import ArrayMap
from ebpf.maps.buckets import BucketTable
from ebpf.maps.hashes import HashMap
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.regions import region_of
from lbctl.model.records import ObjectKey
from lbctl.plan.changes import Plan
from lbctl.plan.planner import Planner
from lbctl.program import readback, writes
from lbctl.resolve.ports import Endpoint, Frontend, FrontendKind, ResolvedPort
from tests.support.fake_tables import FakeArray, FakeHash, FakeTables
from tests.support.map_contents import contents

pytestmark = pytest.mark.kernel

SIZES = Sizes(services=4096, endpoints=40960, flows=1024)
SERVICES, ENDPOINTS = 1000, 10
MAPPED = bytes(10) + b"\xff\xff"


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/ag-program-{os.getpid()}")
    bpffs.mount()
    try:
        yield path
    finally:
        if path.is_dir():
            instance.remove(path)


@pytest.fixture
def tables(pin_dir: Path) -> Iterator[Instance]:
    with Instance.create_or_open(pin_dir, compiler.bundle(), SIZES) as made:
        yield made


def port(number: int, endpoints: int = ENDPOINTS, shift: int = 0) -> ResolvedPort:
    high, low = divmod(number, 256)
    members = tuple(
        Endpoint(MAPPED + bytes((10, high, low, i)), 8080, i % 3 == 0)
        for i in range(1 + shift, 1 + shift + endpoints)
    )
    return ResolvedPort(
        name=f"ns/service{number}:http/TCP/v4",
        protocol=6,
        frontends=(Frontend(MAPPED + bytes((10, 96, high, low)), 80, 6, FrontendKind.CLUSTER_IP),),
        cluster=members,
        local=tuple(e for e in members if e.local),
        local_drop=False,
        internal_local=number % 7 == 0,
        external_local=False,
        affinity_seconds=0,
        source_ranges=(),
        warnings=(),
        hints="",
        service=ObjectKey("ns", f"service{number}"),
    )


def everything(count: int = SERVICES) -> dict[str, ResolvedPort | None]:
    return {p.name: p for p in map(port, range(count))}


def start(tables: Instance, now: float = 0.0) -> tuple[Planner, int]:
    """What an agent does first. Returns the planner and how many stores its repairs made."""
    planner, leftovers = readback.read(tables, now)
    assert leftovers == readback.Leftovers()
    return planner, readback.repair(planner, leftovers, tables)


def test_layouts_of_the_unit_tests_are_those_of_the_programs() -> None:
    specs = compiler.bundle().maps
    for name, table in vars(FakeTables()).items():
        if isinstance(table, FakeHash):
            assert table.spec.key.dtype == specs[name].key.dtype, name
            assert table.spec.value.dtype == specs[name].value.dtype, name
        elif name == "cpus":  # which has only what is read of it
            assert set(table.records.dtype.names) <= set(specs[name].value.dtype.names or ())
        elif isinstance(table, FakeArray):
            assert table.records.dtype == specs[name].value.dtype, name


def test_what_is_programmed_is_what_was_planned(tables: Instance) -> None:
    planner, _ = start(tables)
    writes.apply(planner.plan(everything(), 1.0), tables)
    assert len(Frontends(tables.frontends).read_all().keys) == 2 * SERVICES
    for key, service in own_frontends(tables)[:: SERVICES // 50]:
        check_service(tables, key, service)


def own_frontends(tables: Instance) -> list[tuple[bytes, int]]:
    """Key and service of each ClusterIP."""
    found = Frontends(tables.frontends).read_all()
    own = found.flags == consts.FRONTEND_CLUSTER_IP
    keys = [key.tobytes() for key in found.keys[own]]
    return list(zip(keys, found.services[own].tolist(), strict=True))


def check_service(tables: Instance, key: bytes, number: int) -> None:
    """One service's sets, found the way a packet finds them."""
    wanted = port(int.from_bytes(key[14:16], "big"))
    service = tables.services.records[number]
    assert key[16:] == b"\0\x50\6"
    assert bool(service["flags"] & consts.SERVICE_INTERNAL_LOCAL) == wanted.internal_local
    for field, members in (("cluster", wanted.cluster), ("local", wanted.local)):
        base, length = region_of(int(service[field]))
        assert length == len(members)
        ids = tables.slots.records["backend"][base : base + length]
        rows = tables.backends.records[ids]
        assert [r["addr"].tobytes() for r in rows] == [e.address for e in members]
        assert {r["port"].tobytes() for r in rows} == {(8080).to_bytes(2, "big")}
        assert (rows["service"] == number).all()
        assert (rows["flags"] & consts.BACKEND_SERVING).all()
    name = tables.names.get(tables.names.spec.key.pack(service=number))
    assert name is not None
    assert name.rstrip(b"\0").decode() == wanted.name


def test_a_restart_with_nothing_changed_writes_nothing(
    tables: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, _ = start(tables)
    writes.apply(planner.plan(everything(), 1.0), tables)
    before = contents(tables)
    for method in ("put", "put_many", "delete", "delete_many"):
        monkeypatch.setattr(HashMap, method, forbidden)
    monkeypatch.setattr(ArrayMap, "store_word", forbidden)
    planner, repaired = start(tables, 2.0)
    plan = planner.plan(everything(), 3.0)
    writes.apply(plan, tables)
    assert (repaired, plan.writes()) == (0, {})
    assert contents(tables) == before


def forbidden(*_: object) -> None:
    raise AssertionError("a restart wrote")


def test_one_changed_endpoint_costs_its_service_alone(
    tables: Instance, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planner, _ = start(tables)
    writes.apply(planner.plan(everything(), 1.0), tables)
    before = contents(tables)
    for method in ("put", "put_many", "delete", "delete_many"):
        monkeypatch.setattr(HashMap, method, forbidden)
    changed = port(500, shift=1)
    plan = planner.plan({changed.name: changed}, 2.0)
    writes.apply(plan, tables)
    stores = plan.writes()
    with capsys.disabled():
        print(f"\nstores for one changed endpoint of {SERVICES} x {ENDPOINTS}: {stores}")
    # The local set lost and won nothing: endpoints 3, 6 and 9 stayed.
    assert stores == {"backends": 1, "backend flags": 1, "slots": 10, "region words": 1}
    differing = {name for name, old in before.items() if contents(tables)[name] != old}
    assert differing == {"services", "backends", "slots", "frontends"}
    assert changed_elements(before["services"], tables.services) == 1
    assert changed_elements(before["backends"], tables.backends) == 2
    assert changed_elements(before["slots"], tables.slots) == 10
    # The new endpoint, its byte in a control word, and the same of its address; the count of none:
    # the old one rests.
    assert changed_elements(before["frontends"], tables.frontends) <= 4


def changed_elements(before: bytes, table: ArrayMap) -> int:
    size = table.records.dtype.itemsize
    old = np.frombuffer(before, np.uint8).reshape(-1, size)
    new = np.frombuffer(table.records.tobytes(), np.uint8).reshape(-1, size)
    return int(np.count_nonzero((old != new).any(axis=1)))


def test_everything_goes_and_ids_come_back(tables: Instance) -> None:
    planner, _ = start(tables)
    writes.apply(planner.plan(everything(100), 1.0), tables)
    writes.apply(planner.plan(dict.fromkeys(everything(100)), 2.0), tables)
    assert not len(Frontends(tables.frontends).read_all().keys)
    nothing = np.zeros(0, bool)
    freed = planner.recover(10.0, nothing, nothing)
    assert (len(freed.services), len(freed.backends)) == (100, 100 * ENDPOINTS)
    writes.clear(freed, tables)
    assert not list(tables.names.items())
    assert not tables.backends.records["port"].any()
    assert not len(BucketTable(tables.frontends))
    assert not any(tables.services.records.tobytes())
    # Started again, all ids are free at once, and generations go on.
    planner, _ = start(tables, 11.0)
    writes.apply(planner.plan({port(1).name: port(1)}, 12.0), tables)
    [base, length] = region_of(planner.services[port(1).name].cluster)
    ids = tables.slots.records["backend"][base : base + length]
    assert sorted(ids) == list(range(1, ENDPOINTS + 1))
    assert set(tables.backends.records["generation"][ids].tolist()) == {2}


def test_a_kill_between_any_two_steps_is_repaired(tables: Instance) -> None:
    """The plan is cut short after each kind of write; what the next agent makes of it is right."""
    steps = (
        "names", "backend_ids", "slot_indices", "words", "frontends", "frontends_gone",
        "words_emptied", "lowered",
    )  # fmt: skip
    now = 0.0
    for number, step in enumerate(steps):
        now += 10
        planner, _ = readback.read(tables, now)
        changes: dict[str, ResolvedPort | None] = dict.fromkeys(planner.services)
        changes |= {p.name: p for p in (port(i, shift=number) for i in range(number, 20))}
        plan = planner.plan(changes, now)
        writes.apply(cut(plan, steps[steps.index(step) :]), tables)
        planner, leftovers = readback.read(tables, now)
        readback.repair(planner, leftovers, tables)
        everyone: dict[str, ResolvedPort | None] = dict.fromkeys(planner.services)
        writes.apply(planner.plan(everyone | changes, now + 1), tables)
        own = own_frontends(tables)
        assert len(own) == 20 - number
        serving = np.count_nonzero(tables.backends.records["flags"] & consts.BACKEND_SERVING)
        assert serving == (20 - number) * ENDPOINTS
        for _, service in own:
            base, length = region_of(int(tables.services.records["cluster"][service]))
            rows = tables.backends.records[tables.slots.records["backend"][base : base + length]]
            first = 1 + number
            last_bytes = [int(r["addr"].tobytes()[15]) for r in rows]
            assert last_bytes == list(range(first, first + ENDPOINTS))


def cut(plan: Plan, undone: tuple[str, ...]) -> Plan:
    for name in undone:
        getattr(plan, name).clear()
        if name == "backend_ids":
            plan.backend_identities.clear()
            plan.backend_flags.clear()
            plan.backend_services.clear()
        if name == "slot_indices":
            plan.slot_backends.clear()
    return plan
