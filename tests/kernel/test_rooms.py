"""Full maps, one by one: who asks for more than there is room for costs itself its place, and
nobody else; with real maps, which refuse what does not fit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ebpf import instance
from ebpf.compile import compiler
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from lbctl.addresses import parse_address, parse_prefix
from lbctl.model.records import (
    EndpointSlice,
    Hints,
    ObjectKey,
    Protocol,
    Service,
    ServiceObjects,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from lbctl.reconcile.reconciler import Reconciler
from tests.support.map_contents import contents
from tests.support.reconciling import NODE, Clock, settle, update

pytestmark = pytest.mark.kernel

SIZES = Sizes(services=256, endpoints=512, flows=128)


@pytest.fixture
def tables() -> Iterator[Instance]:
    path = Path(f"/sys/fs/bpf/ag-rooms-{os.getpid()}")
    bpffs.mount()
    try:
        with Instance.create_or_open(path, compiler.bundle(), SIZES) as made:
            yield made
    finally:
        if path.is_dir():
            instance.remove(path)


def objects(
    name: str,
    number: int,
    *,
    ports: int = 1,
    endpoints: int = 2,
    ranges: int = 0,
    external: int = 0,
    born: int = 5,
) -> ServiceObjects:
    key = ObjectKey("default", name)
    names = [f"p{i}" for i in range(ports)]
    high, low = divmod(number, 200)
    hosts = [f"10.{low}.{i // 250}.{i % 250}" for i in range(endpoints)]
    return ServiceObjects(
        Service(
            key,
            "LoadBalancer",
            cluster_ips=(parse_address(f"10.96.{high}.{low}"),),
            external_ips=tuple(
                parse_address(f"192.0.{i // 250}.{i % 250}") for i in range(external)
            ),
            ingress_ips=(parse_address(f"198.51.{high}.{low}"),) if ranges else (),
            source_ranges=tuple(
                parse_prefix(f"20.{i // 250}.{i % 250}.0/24") for i in range(ranges)
            ),
            ports=tuple(ServicePort(p, Protocol.TCP, 1000 + i) for i, p in enumerate(names)),
            seniority=born.to_bytes(8, "big"),
        ),
        (
            EndpointSlice(
                ObjectKey("default", f"{name}-1"),
                key,
                4,
                tuple(SlicePort(p, Protocol.TCP, 8080) for p in names),
                tuple(
                    SliceEndpoint(parse_address(h), "", True, True, False, Hints()) for h in hosts
                ),
            ),
        ),
    )


HOSTILE = {
    "services": objects("hostile", 999, ports=1000, born=1),
    "frontends": objects("hostile", 999, ports=3, external=500, born=1),
    "backends and slots": objects("hostile", 999, ports=2, endpoints=2000, born=1),
    "source_ranges": objects("hostile", 999, ports=100, ranges=66, born=1),
    "everything": objects("hostile", 999, ports=300, endpoints=50, ranges=50, external=9, born=1),
}
OTHERS = [objects(f"s{i:02}", i, ports=2, ranges=1) for i in range(12)]


def served(reconciler: Reconciler) -> set[str]:
    return {state.name.split(":")[0] for state in reconciler.planner.services.values()}


def take(reconciler: Reconciler, found: Sequence[ServiceObjects]) -> None:
    reconciler.take(update(*found))
    reconciler.apply(complete=True)
    assert not reconciler.refused, reconciler.warnings()


@pytest.mark.parametrize("full", HOSTILE)
@pytest.mark.parametrize("place", [0, 6, 12])
def test_who_asks_for_too_much_harms_nobody(
    tables: Instance, full: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    reconciler = Reconciler(tables, NODE)
    take(reconciler, OTHERS[:place])
    take(reconciler, [HOSTILE[full]])
    told = reconciler.warnings()
    assert told[0].startswith("default/hostile has no room: ")
    assert "start the agent with a larger --" in told[0]
    assert len(told) == 1 or (len(told) == 2 and "of which a port can use" in told[1])
    for one in OTHERS[place:]:
        take(reconciler, [one])
        assert one.service
        assert str(one.service.key) in served(reconciler)
    assert len(reconciler.warnings()) == len(told)
    for one in OTHERS:
        assert one.service
        changed = objects(one.service.key.name, 0, ports=2, ranges=1, endpoints=3)
        take(reconciler, [ServiceObjects(one.service, changed.slices)])
    assert not {k for k in reconciler.troubles() if k != "default/hostile"}
    settle(reconciler, clock)
    # The next agent comes to the same, and writes nothing.
    before = contents(tables)
    again = Reconciler(tables, NODE)
    take(
        again,
        [HOSTILE[full], *reversed([o for o in map(reconciler.known.objects.get, keys()) if o])],
    )
    assert again.troubles().keys() == reconciler.troubles().keys()
    assert contents(tables) == before


def keys() -> list[ObjectKey]:
    return [one.service.key for one in OTHERS if one.service]
