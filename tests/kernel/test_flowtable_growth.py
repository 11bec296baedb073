"""A table of flows grows while two CPUs open, use and end flows in it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ebpf import flowtable
from ebpf.errors import LbError
from ebpf.growth import Growth
from tests.kernel.support import stress
from tests.kernel.support.flow_tables import PrivateTable, bundle_with, rings, table_bundle
from tests.kernel.support.stress import SLOWLY

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.alone,  # two CPUs, each for itself
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
KEYS, LASTING, BUCKETS = 16, 16, 32
PATIENCE = 120.0  # seconds; each is noticed within some, on a loaded machine later


def growing_table(
    tmp_path: Path, family: str, replaced: Sequence[tuple[str, str, str]] = ()
) -> PrivateTable:
    """Some flows come and go, and some last; used all the time."""
    defines = (("KEYS", str(KEYS)), ("LASTING", str(LASTING)))
    private = PrivateTable(
        bundle_with("stress.c", family, tmp_path, replaced, defines), family, BUCKETS
    )
    stress.write_wanted(private, KEYS, LASTING)
    stress.seed(private)
    stress.open_lasting(private, KEYS, LASTING)
    return private


def grow_often(private: PrivateTable, seconds: float) -> tuple[int, int]:
    """From bank to bank and back, under stress; how often, and how many flows moved."""
    times = moved = 0
    stop = time.monotonic() + seconds
    with stress.at_work(private) as steps:
        while time.monotonic() < stop and not stress.violated(private):
            moved += stress.grow(private, BUCKETS, keep=True, steps=steps)
            times += 1
    return times, moved


@pytest.mark.parametrize("family", ["4", "6"])
def test_growing_under_stress(tmp_path: Path, soak: float, family: str) -> None:
    """Nothing is lost, doubled or counted twice."""
    private = growing_table(tmp_path, family)
    try:
        times, moved = grow_often(private, 2 * soak)
        print(f"{times} times, {moved} flows moved, {stress.totals(private)}")
        assert not stress.faults(private, LASTING)
        assert moved >= times * LASTING
    finally:
        private.close()


MUTATIONS = {
    "nobody looks where flows come from": (
        "cells.h",
        "	return find_on(false, t, hash, key, found) &&",
        "	return 0 && find_on(false, t, hash, key, found) &&",
    ),
    "the truth passed on by a plain store": (
        "moving.h",
        "was = __sync_val_compare_and_swap(&forward->cell->head, head, head | HEAD_MOVED);",
        "was = head; LINGER; forward->cell->head = head | HEAD_MOVED;",
    ),
    "a claim looks in its own bank alone": (
        "claim.h",
        "	return is_taken_on(false, t, hash, key, generation, mine) ||\n",
        "	return ",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_safeguard_it_is_noticed(tmp_path: Path, name: str) -> None:
    private = growing_table(tmp_path, "4", [("hash.h", *SLOWLY), MUTATIONS[name]])
    found: list[str] = []
    stop = time.monotonic() + PATIENCE
    try:
        while not found and time.monotonic() < stop:
            try:
                grow_often(private, 1.0)
                found = stress.faults(private, LASTING)
            except LbError as error:  # what is twice cannot all move
                found = [error.message]
        print(f"{name}: {found}")
        assert found
    finally:
        private.close()


def recounted(private: PrivateTable) -> tuple[int, int, int, int]:
    """Flows that are there, live by backend and by service, and cells said to be held."""
    cells = private.table.view()
    forward = cells[(cells["kind"] & private.enums["CELL_REPLY"] == 0) & ~cells["moved"]]
    return (
        len(forward),
        int(private.records("backend_live").sum()),
        int(private.records("service_counters")["live"].sum()),
        int(private.records(f"held{private.family}").sum()) // 2,
    )


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize("killed_after", ["begin", "leave", "move", "half a move", "finish"])
def test_the_next_process_goes_on(family: str, killed_after: str) -> None:
    """Wherever the agent is killed: what it did is in the tables, and the next one does the rest.
    Packets meanwhile find every flow."""
    private = PrivateTable(table_bundle(family), family, 256)
    try:
        assert private.table.open(rings(private.enums, family, 600)) == 600
        before = np.sort(private.table.view(), order=["client_port", "kind"])
        interrupted(Growth(private, family), private, killed_after)
        assert recounted(private)[0] == 600
        finished(Growth(private, family), private)
        after = np.sort(private.table.view(), order=["client_port", "kind"])
        for name in set(before.dtype.names or ()) - {"place", "next"}:
            assert np.array_equal(before[name], after[name]), name
        assert recounted(private) == (600, 600, 600, 600)
        assert private.maps[f"cells{family}a"].max_entries == 8
        assert private.table.end(after["place"], after["generation"], 0) == 600
        counters = private.records("service_counters")[7]
        assert int(counters["packets_in"]) == int(counters["packets_out"]) == 3 * 600
    finally:
        private.close()


@pytest.mark.parametrize("family", ["4", "6"])
def test_a_restart_writes_to_no_table(family: str) -> None:
    """However large it has become, and whichever bank it is in."""
    private = PrivateTable(table_bundle(family), family, 64)
    private.share = None
    names = [f"{part}{family}{letter}" for part in ("table", "control") for letter in "ab"]
    try:
        for buckets in (128, 256):
            stress.grow(private, buckets)
            before = {name: private.records(name).tobytes() for name in names}
            flowtable.prepare(private.maps, private.enums)
            assert {name: private.records(name).tobytes() for name in names} == before
            own = private.table.banks[0].table[0]
            assert (own["buckets"], own["share"]) == (buckets, buckets * 8 // 16)
    finally:
        private.close()


def interrupted(growth: Growth, private: PrivateTable, after: str) -> None:
    growth.begin(512)
    if after == "begin":
        return
    private.load()
    growth.leave()
    if after == "leave":
        return
    private.load()
    if after == "half a move":
        assert len(private.table.move(200)) == 200  # and nobody carries
        return
    growth.move(private.programs, 100)
    if after == "move":
        return
    while growth.left():
        growth.move(private.programs)
    growth.finish()


def finished(growth: Growth, private: PrivateTable) -> None:
    """What an agent does when it starts, whatever was before."""
    private.load()
    if growth.step == "leave":
        growth.leave()
        private.load()
    if growth.step == "move":
        while growth.left():
            growth.move(private.programs)
        growth.finish()
    growth.tidy()
    private.load()


def test_what_packets_count_while_a_flow_moves_is_not_lost() -> None:
    """A packet that found the old cell before the move writes to it after."""
    private = PrivateTable(table_bundle("4"), "4", 64)
    try:
        wanted = rings(private.enums, "4", 2)
        private.table.open(wanted)
        growth = Growth(private, "4")
        growth.begin(128)
        growth.leave()
        private.load()
        old = private.table.banks[1]
        moved = private.table.move()
        here = moved["cells"]["place"][:, 0] & private.enums["PLACE_INDEX_MASK"]
        for field, value in (("packets", 5), ("bytes", 1000), ("seen", 9)):
            old.states[field][here] += value
        old.states["link"][here] |= private.enums["CELL_FIN"] << private.enums["LINK_FLAGS_SHIFT"]
        # One of the two ends meanwhile: then it is the service's.
        ended = private.table.view()
        ended = ended[(ended["sport"] == wanted["sport"][0, 0]) & ~ended["moved"]]
        assert private.table.end(ended["place"], ended["generation"], 0) == 1
        private.table.carry(moved)
        assert growth.left() == 0
        (left,) = (cell for cell in private.table.view() if cell["kind"] == 0)
        assert (left["packets"], left["bytes"], left["seen"]) == (8, 1300, 9)
        assert left["flags"] == private.enums["CELL_FIN"]
        counters = private.records("service_counters")[7]
        assert (int(counters["packets_in"]), int(counters["bytes_in"])) == (8, 1300)
    finally:
        private.close()


A_SECOND = 125_000  # flows, times --soak: a million with 8


def test_from_the_smallest_to_hundreds_of_thousands(tmp_path: Path, soak: float) -> None:
    """Two CPUs open flows, as many as a table that is never more than two thirds full has room for,
    use those that there are, and open and end others; the table grows under them. Every flow is
    found every time, and the counts are exact."""
    count = int(A_SECOND * soak)
    private = PrivateTable(bundle_with("churn.c", "4", tmp_path), "4", 4)
    try:
        stress.seed(private)
        threads = private.records("threads")
        with stress.at_work(private, "churn", 500, 0.001) as steps:
            while threads["kept"].sum() < count:
                assert not stress.violated(private)
                rooms = private.table.rooms()
                threads["wanted"] = min(count // 2, rooms.cells // 6)
                if 2 * rooms.used > rooms.cells:
                    stress.grow(private, max(16, rooms.cells // 8 * 4), steps=steps)
                time.sleep(0.005)
        print({name: int(threads[name].sum()) for name in threads.dtype.names or ()})
        assert not stress.violated(private)
        assert recounted(private) == (count,) * 4
        assert private.table.rooms().used == 2 * count
        assert private.table.evicted() == 0
        cells = private.table.view()
        assert int(cells["packets"].sum()) <= int(threads["used"].sum())
        assert int(threads["ended"].sum()) > count // 2
    finally:
        private.close()
