"""Sizes of maps."""

from __future__ import annotations

import pytest

from ebpf.maps.sizes import LIMITS, Sizes

GIB = 1 << 30


def test_a_large_machine_has_the_defaults() -> None:
    assert Sizes.automatic(64 * GIB) == Sizes() == Sizes(65536, 262144, 131072)


@pytest.mark.parametrize(("memory", "flows"), [(4 * GIB, 131072), (2 * GIB, 65536), (1, 8192)])
def test_small_machines_get_their_share(memory: int, flows: int) -> None:
    assert Sizes.automatic(memory).flows == flows


def test_entries_follow_the_three_numbers_and_the_constants() -> None:
    enums = {"REASON_MAX": 20, "SERVICE_FILTER_BITS": 19, "PROGRAM_MAX": 14}
    entries = Sizes(10, 20, 30).max_entries(enums)
    assert entries["flows4"] == entries["flows6"] == 60
    assert entries["flows4_lru"] == 30
    assert entries["slots"] == 80
    assert entries["counters"] == 20
    assert entries["programs"] == 14
    assert entries["service_filter"] == 8192
    assert entries.keys() >= LIMITS.keys()
