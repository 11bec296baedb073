"""Guards what a change, a restart and an endpoint cost, by counts and ratios: see docs/scale.md."""

from __future__ import annotations

import gc
import os
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ebpf import instance
from ebpf.compile import compiler
from ebpf.instance import Instance
from ebpf.kernel import libbpf
from ebpf.maps.sizes import Sizes
from ebpf.parts import used
from lbctl.agent import fastpath, sockets
from lbctl.agent.growth import Growth
from lbctl.config.settings import Settings
from lbctl.datapath.tables import Tables
from lbctl.inspect import instance as inspect
from lbctl.metrics.services import Bounds, ServiceSeries
from lbctl.model.decode import SERVICES, SLICES
from lbctl.model.records import EndpointSlice, Node, Service
from lbctl.plan.changes import Plan
from lbctl.program import readback, writes
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import ResolvedPort
from lbctl.resolve.service import resolve
from lbctl.sources.store import Store
from tests.perf.support.scale_cluster import PER_SLICE, Json, endpoints, service, slice_of
from tests.perf.support.scale_node import fingerprint

pytestmark = [pytest.mark.kernel, pytest.mark.perf]

NODE = "node-0"
ENDPOINTS = 10
SMALL, MIDDLE, LARGE = 100, 2_000, 10_000
# What is traced at 2,000 services is 330 bytes per endpoint, its share of the service included.
BYTES_PER_ENDPOINT = 420
TRIES = 40
# Calls of functions, of Python and of C, for each service of ten endpoints: a start's time goes by
# them, and they are the same at every run. Decoded; resolved, planned and written; read back;
# resolved and compared. As they are now, and a twentieth.
CALLS_DECODING = 176
CALLS_STARTING = 287
CALLS_READING_BACK = 20
CALLS_RESTARTING = 191
# Programs that a first start waits for, and their instructions: as they are now, and a twentieth.
MOST_PROGRAMS = 89
MOST_INSTRUCTIONS = 168_000


class Control:
    """A store, a reconciler and maps of their own: the agent without threads and programs."""

    def __init__(self, pin_dir: Path, services: int, sizes: Sizes | None = None) -> None:
        sizes = sizes or Sizes(services * 2, services * ENDPOINTS * 2, 128)
        self.instance = Instance.create_or_open(pin_dir, compiler.bundle(), sizes)
        self.store = Store(NODE, parts=3)
        self.services = services
        self.reconciler = Reconciler(self.instance, NodeFacts(NODE))

    def fill(self) -> bool:
        """Everything there is, listed; returns whether something was written."""
        self.list()
        return self.take()

    def list(self) -> None:
        """Everything there is, for the store."""
        numbers = range(self.services)
        self.store.replace(Service, [SERVICES.decode(_json(service(n))) for n in numbers])
        slices = (slice_of(n, endpoints(n, ENDPOINTS)) for n in numbers)
        self.store.replace(EndpointSlice, [SLICES.decode(_json(s)) for s in slices])
        self.store.replace(Node, [Node(NODE)])

    def change(self, number: int, turn: int) -> None:
        """Another pod takes the place of a service's last one: from the event's bytes on."""
        addresses = [*endpoints(number, ENDPOINTS)[:-1], f"10.120.{turn % 250}.1"]
        self.store.put(SLICES.decode(_json(slice_of(number, addresses))))
        assert self.take()

    def take(self) -> bool:
        update = self.store.take()
        assert update is not None
        self.reconciler.take(update)
        return self.reconciler.apply(update.complete)

    def close(self) -> None:
        self.instance.close()
        self.store.close()


def _json(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


@contextmanager
def control(services: int, sizes: Sizes | None = None) -> Iterator[Control]:
    pin_dir = Path(f"/sys/fs/bpf/sc-guard-{os.getpid()}-{services}")
    made = Control(pin_dir, services, sizes)
    try:
        yield made
    finally:
        made.close()
        instance.remove(pin_dir)


@pytest.fixture(scope="module")
def small() -> Iterator[Control]:
    with control(SMALL) as made:
        made.fill()
        yield made


@pytest.fixture(scope="module")
def large() -> Iterator[Control]:
    with control(LARGE) as made:
        made.fill()
        gc.collect()
        gc.freeze()
        yield made
        gc.unfreeze()


class CountedLibrary:
    """libbpf, with a count of the calls by name; each is one bpf system call or more."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._library, name)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counted = CountedLibrary(libbpf.library())
    monkeypatch.setattr(libbpf, "library", lambda: counted)
    return counted.calls


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Every plan that is carried out."""
    seen: list[Plan] = []
    apply = writes.apply

    def noting(plan: Plan, tables: Tables) -> None:
        seen.append(plan)
        apply(plan, tables)

    monkeypatch.setattr(writes, "apply", noting)
    return seen


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_changed_endpoint_is_a_region_two_backends_and_one_switch(
    size: str, request: pytest.FixtureRequest, plans: list[Plan], calls: Counter[str]
) -> None:
    made: Control = request.getfixturevalue(size)
    plans.clear()
    calls.clear()
    made.change(SMALL // 2, 1)
    [plan] = plans
    assert plan.writes() == {
        "backends": 1,  # the one that came
        "backend flags": 1,  # the one that left
        "slots": ENDPOINTS,
        "region words": 1,
    }
    assert not calls, "all of it goes through mapped memory"


def test_a_new_service_is_one_map_update(
    large: Control, plans: list[Plan], calls: Counter[str]
) -> None:
    calls.clear()
    large.store.put(SERVICES.decode(_json(service(LARGE))))
    large.store.put(SLICES.decode(_json(slice_of(LARGE, endpoints(LARGE, ENDPOINTS)))))
    large.take()
    assert calls == {"bpf_map_update_batch": 1}, "its name; its addresses are stored"
    assert plans[-1].writes()["frontends"] == 2  # the address with its port, and by itself


def test_a_change_costs_the_same_at_any_size(small: Control, large: Control) -> None:
    cheap, dear = ([_cpu(made, turn) for turn in range(TRIES)] for made in (small, large))
    assert min(dear) < 3 * min(cheap), f"{min(cheap):.6f} s and {min(dear):.6f} s"


def _cpu(made: Control, turn: int) -> float:
    number = (turn * 37 + 3) % made.services
    began = time.thread_time()
    made.change(number, turn)
    return time.thread_time() - began


def test_a_restart_without_change_writes_nothing(calls: Counter[str], plans: list[Plan]) -> None:
    with control(MIDDLE) as first:
        assert first.fill()
        before = fingerprint(first.instance)
        second = Control.__new__(Control)
        second.instance, second.services = first.instance, MIDDLE
        second.store = Store(NODE, parts=3)
        calls.clear()
        plans.clear()
        second.reconciler = Reconciler(first.instance, NodeFacts(NODE))
        assert not second.fill()
        second.store.close()
        assert _writing(calls) == []
        assert [plan.writes() for plan in plans] == [{}] * len(plans)
        assert fingerprint(first.instance) == before


def counted(act: Callable[[], object]) -> float:
    """Calls of functions that `act` makes, for each of MIDDLE services."""
    seen = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return seen / MIDDLE


def test_what_a_start_and_a_restart_cost() -> None:
    services = [_json(service(n)) for n in range(MIDDLE)]
    slices = [_json(slice_of(n, endpoints(n, ENDPOINTS))) for n in range(MIDDLE)]

    def decode() -> None:
        for one, part in zip(services, slices, strict=True):
            SERVICES.decode(one)
            SLICES.decode(part)

    decoding = counted(decode)
    with control(MIDDLE) as made:
        made.list()
        starting = counted(made.take)
        made.store.close()
        made.store = Store(NODE, parts=3)
        made.list()

        def read_back() -> None:
            made.reconciler = Reconciler(made.instance, NodeFacts(NODE))

        reading_back = counted(read_back)
        restarting = counted(made.take)
    found = decoding, starting, reading_back, restarting
    most = CALLS_DECODING, CALLS_STARTING, CALLS_READING_BACK, CALLS_RESTARTING
    assert all(now <= bound for now, bound in zip(found, most, strict=True)), f"{found}, not {most}"


def test_what_the_kernel_checks_before_a_first_start_serves() -> None:
    """With the options that an agent has by itself: nothing of what is off, nor what no packet gets
    to. Its time goes by these numbers (`python -m ebpf`), and they are the same at every run."""
    settings = Settings()
    fast = settings.fast_path == fastpath.ON or settings.xdp != fastpath.OFF
    sizes = Sizes(sockets=settings.socket_lb != sockets.OFF, fast_path=fast)
    programs = used(compiler.bundle(), sizes).programs.values()
    first = [program for program in programs if not program.on_lists]
    length = sum(len(program.insns) // 8 for program in first)
    assert len(first) <= MOST_PROGRAMS
    assert length <= MOST_INSTRUCTIONS


def test_a_restart_exchanges_no_map() -> None:
    """Maps are made as large as the objects ask for once, by the first start."""
    most = Sizes(MIDDLE * 2, MIDDLE * ENDPOINTS * 2, 128)
    bundle = compiler.bundle()
    with control(MIDDLE, most.at_first(0)) as made:
        ids = []
        nobody: Any = None  # who has a part in growth while traffic runs
        for _ in range(3):
            room = readback.room_for(most.max_entries(bundle))
            made.reconciler = Reconciler(made.instance, NodeFacts(NODE), most=room)
            growth = Growth(bundle, made.instance, nobody, made.reconciler, nobody, nobody, most)
            made.store.close()
            made.store = Store(NODE, parts=3)
            made.list()
            update = made.store.take()
            assert update is not None
            made.reconciler.take(update)
            growth.fit()
            made.reconciler.apply(complete=True)
            ids.append({name: made.instance.map(name).id for name in made.instance.map_names()})
        assert made.instance.services.max_entries > most.at_first(0).services
    assert ids[0] == ids[1] == ids[2]


def _writing(calls: Iterable[str]) -> list[str]:
    return [name for name in calls if "update" in name or "delete" in name]


def test_a_service_of_thousands_of_ports_costs_what_changed(
    plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports in slices of a hundred: an endpoint more in one slice is looked at for its hundred
    ports, however many others there are."""
    seen: list[int] = []

    def counting(*given: Any) -> tuple[ResolvedPort, ...]:
        found = resolve(*given)
        seen.append(len(found))
        return found

    monkeypatch.setattr("lbctl.reconcile.reconciler.resolve", counting)
    with control(MIDDLE * 2) as made:
        sliced = _many_ports(3_000)
        made.store.replace(Service, [SERVICES.decode(_json(sliced[0]))])
        made.store.replace(EndpointSlice, [SLICES.decode(_json(s)) for s in sliced[1:]])
        made.store.replace(Node, [Node(NODE)])
        made.take()
        assert seen == [3_000]
        assert len(made.reconciler.planner.services) == 3_000
        plans.clear()
        more = sliced[7]
        more["endpoints"].append({"addresses": ["10.128.0.9"]})
        made.store.put(SLICES.decode(_json(more)))
        made.take()
    assert seen == [3_000, PER_SLICE]
    assert [plan.writes() for plan in plans] == [
        {"backends": PER_SLICE, "slots": 3 * PER_SLICE, "region words": PER_SLICE}
    ]


def _many_ports(count: int) -> list[Json]:
    """A service, and its slices of a hundred ports with two endpoints."""
    made = service(0)
    made["spec"]["ports"] = [
        {"name": f"p{i}", "port": 20_000 + i, "protocol": "UDP"} for i in range(count)
    ]
    parts = []
    for start in range(0, count, PER_SLICE):
        part = slice_of(0, ["10.128.0.1", "10.128.0.2"])
        part["metadata"]["name"] += f"-{start}"
        part["ports"] = made["spec"]["ports"][start : start + PER_SLICE]
        parts.append(part)
    return [made, *parts]


def scrape(control: Control, calls: Counter[str]) -> Counter[str]:
    """What asking for every service's series costs, the second time; all of them are there."""
    series = ServiceSeries(
        control.instance,
        lambda: Bounds(control.services),
        lambda: control.instance.service_counters.records,
    )
    series.scrape()
    calls.clear()
    _, text = series.scrape()
    assert text.count("\nlbctl_service_connections_total{") == control.services
    inspect.reasons(control.instance)
    return Counter(calls)


def test_a_scrape_makes_no_call_per_service(
    small: Control, large: Control, calls: Counter[str]
) -> None:
    few, many = scrape(small, calls), scrape(large, calls)
    assert few["bpf_map_lookup_elem"] == many["bpf_map_lookup_elem"] < 100
    assert few.keys() == many.keys()
    assert many["bpf_map_lookup_batch"] <= few["bpf_map_lookup_batch"] + LARGE / 1000


def test_memory_per_endpoint() -> None:
    with control(MIDDLE) as made:
        gc.collect()
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            made.fill()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    each = (after - before) / (MIDDLE * ENDPOINTS)
    assert each < BYTES_PER_ENDPOINT, f"{each:.0f} bytes per endpoint"
