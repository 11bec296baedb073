"""An instance of 0.1.0, whose flows were entries of hash maps: they go on as cells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from ebpf import instance, maps
from ebpf.compile import compiler
from ebpf.compile.source import family_unit
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs
from ebpf.layouts import Bundle
from ebpf.maps import HashMap
from ebpf.programs import load_generation
from lbctl.agent import carrying
from lbctl.agent.carrying import Carrying
from lbctl.datapath import consts, former
from tests.kernel.support.programs import MACHINE_BPFFS, unique
from tests.support import former_flows as old
from tests.support.former_flows import FormerFlows

pytestmark = pytest.mark.kernel

SMALL = Sizes(16, 16, 64)
CLIENT, SERVICE, BACKEND = ("10.0.0.9", 4000), ("10.96.0.1", 80), ("10.0.1.1", 8080)
CLIENT6, SERVICE6, BACKEND6 = ("fd00::9", 4000), ("fd00:96::1", 80), ("fd00:1::1", 8080)
OPEN: dict[str, Any] = {"state": old.ESTABLISHED, "service": 3, "backend": 7 | 2 << 24}
FORMER = {name for names in former.TABLES.values() for name in names}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The programs that open flows, on the maps of today."""
    found = compiler.bundle(units=[family_unit("4", "table.c"), family_unit("6", "table.c")])
    kept = {name: spec for name, spec in found.maps.items() if name not in FORMER}
    # Of the program arrays' slots none is there.
    slots = ("PROGRAM_", "XDP_FORWARD", "XDP_PROGRAM")
    numbers = {n: v for n, v in found.enums.items() if not n.startswith(slots)}
    return structs.replace(found, maps=kept, enums=numbers)


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    bpffs.mount()
    path = MACHINE_BPFFS / unique("upgrade")
    yield path
    if path.exists():
        instance.remove(path)


def leave(made: Instance, flows: dict[str, FormerFlows]) -> dict[str, HashMap]:
    """Maps as that version pinned them, with these flows."""
    tables = {}
    for family in (4, 6):
        for spec in old.map_specs(family):
            table = maps.create(spec, 256)
            assert isinstance(table, HashMap)
            made.meta.note_map(table)
            bpffs.pin(table.fd, made.pin_dir / "maps" / spec.name)
            if spec.name in flows:
                table.put_many(*flows[spec.name].entries)
            tables[spec.name] = table
    return tables


def flows_at(now: int) -> dict[str, FormerFlows]:
    """Three connections and a conversation, two of the connections in the table that forgets."""
    common: dict[str, Any] = OPEN | {"seen": now - 60}
    tcp, others, six = FormerFlows(), FormerFlows(), FormerFlows(6)
    tcp.add(CLIENT, SERVICE, BACKEND, ack=11, **common)
    others.add(("10.0.0.9", 4001), SERVICE, BACKEND, node=("172.18.0.1", 61001), seen_as=61001,
               **common)  # fmt: skip
    udp = common | {"state": old.DATAGRAM, "proto": old.UDP}
    others.add(("10.0.0.9", 53), SERVICE, BACKEND, flags=old.REPLIED, **udp)
    six.add(CLIENT6, SERVICE6, BACKEND6, **common)
    return {"flows4": tcp, "flows4_lru": others, "flows6": six}


def test_flows_go_on(pin_dir: Path, bundle: Bundle) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> 30
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        left = leave(made, flows_at(now))
    assert carrying.count(pin_dir) == 4  # eight entries, of which two are no flow's own
    first = Sizes().at_first(carrying.count(pin_dir))
    with Instance.create_or_open(pin_dir, bundle, first) as made:
        carried = Carrying(bundle, made)
        with load_generation(bundle, made):
            assert carried.carry() == 4
            four, six = made.flow_tables
            cells = {int(cell["sport"]): cell for cell in four.view() if not cell["kind"] & 3}
            assert len(cells) == 3
            assert four.rooms().used == 2 + 4 + 2
            assert six.rooms().used == 2
            assert made.backend_live.records[7] == 4
            assert made.service_counters.records["live"][3] == 4
            assert made.service_counters.records["connections"][3] == 0  # counted when they began
            states = sorted(int(cell["state"]) for cell in cells.values())
            assert states == [consts.STATE_ESTABLISHED] * 2 + [consts.STATE_DATAGRAM]
            # The programs of that version still run, and open one more.
            late = FormerFlows()
            late.add(("10.0.0.9", 4002), SERVICE, BACKEND, **OPEN, seen=now)
            left["flows4"].put_many(*late.entries)
            assert carried.carry() == 1
            assert made.backend_live.records[7] == 5
            made.finish()
        assert not set(made.map_names()) & left.keys()
    with Instance.create_or_open(pin_dir, bundle, SMALL) as made:
        assert Carrying(bundle, made).carry() == 0
        assert made.flow_tables[0].rooms().used == 10
    for table in left.values():
        table.close()
