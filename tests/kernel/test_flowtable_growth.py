"""A table of flows grows while two CPUs open, use and end flows in it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kernel.support import stress
from tests.kernel.support.flow_tables import PrivateTable, bundle_with
from tests.kernel.support.stress import SLOWLY

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
KEYS, LASTING, BUCKETS = 16, 16, 32
PATIENCE = 30.0  # seconds; each is noticed within some


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
    with stress.at_work(private):
        while time.monotonic() < stop and not stress.violated(private):
            moved += stress.grow(private, BUCKETS, keep=True)
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
    "the bank that flows come to is looked at first": (
        "claim.h",
        "	return is_taken_on(false, t, hash, key, generation, mine) ||\n"
        "	       is_taken_on(true, t, hash, key, generation, mine);",
        "	if (is_taken_on(true, t, hash, key, generation, mine))\n		return true;\n"
        "	LINGER;\n	return is_taken_on(false, t, hash, key, generation, mine);",
    ),
    "a claim looks in its own bank alone": (
        "claim.h",
        "	return is_taken_on(false, t, hash, key, generation, mine) ||\n",
        "	return ",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_safeguard_it_is_noticed(tmp_path: Path, name: str) -> None:
    private = growing_table(tmp_path, "4", [("cells.h", *SLOWLY), MUTATIONS[name]])
    found: list[str] = []
    stop = time.monotonic() + PATIENCE
    try:
        while not found and time.monotonic() < stop:
            grow_often(private, 1.0)
            found = stress.faults(private, LASTING)
        print(f"{name}: {found}")
        assert found
    finally:
        private.close()
