"""A table of flows grows while two CPUs open, use and end flows in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.support import stress
from tests.kernel.support.flow_tables import PrivateTable, bundle_with

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]
GROWTHS = 4


@pytest.mark.parametrize("family", ["4", "6"])
def test_growing_under_stress(tmp_path: Path, family: str) -> None:
    """From bank to bank, always nearly full; nothing is lost, doubled or counted twice."""
    keys = 64
    bundle = bundle_with("stress.c", family, tmp_path, defines=(("KEYS", str(keys)),))
    private = PrivateTable(bundle, family, 8)
    try:
        stress.write_wanted(private, keys)
        stress.seed(private)
        moved = 0
        with stress.at_work(private):
            for number in range(GROWTHS):
                moved += stress.grow(private, 8 + 2 * number)
        print(stress.totals(private), f"{moved} moved")
        assert not stress.faults(private)
        assert moved > 10 * GROWTHS
    finally:
        private.close()
