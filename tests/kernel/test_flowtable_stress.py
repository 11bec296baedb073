"""The protocol of the table of flows: two CPUs at once on tables that are always nearly full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.support import stress
from tests.kernel.support.flow_tables import PrivateTable, bundle_with

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.alone,  # two CPUs, each for itself
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]


@pytest.mark.parametrize("family", ["4", "6"])
@pytest.mark.parametrize(("keys", "buckets"), [(64, 8), (16, 3), (8, 1)])
def test_nothing_is_lost_doubled_or_torn(
    tmp_path: Path, soak: float, family: str, keys: int, buckets: int
) -> None:
    """And each thing that can happen did."""
    bundle = bundle_with("stress.c", family, tmp_path, defines=(("KEYS", str(keys)),))
    private = PrivateTable(bundle, family, buckets)
    try:
        stress.write_wanted(private, keys)
        stress.seed(private)
        steps = stress.run(private, soak)
        done = stress.totals(private)
        print(f"{steps} steps: {done}, {private.table.evicted()} evicted")
        assert not stress.faults(private)
        for name in ("opened", "ended", "taken", "hits", "misses", "changed"):
            assert done[name] > 100, name
        assert done["full"]
        assert private.table.evicted() > 100
    finally:
        private.close()
