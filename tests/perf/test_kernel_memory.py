"""Guards what all maps of a node take: bytes, by number of services, with a thousand flows."""

from __future__ import annotations

import os

import pytest

from tests.perf.support.scale_node import Node

pytestmark = [pytest.mark.kernel, pytest.mark.perf]

FLOWS = 1000
# What docs/scale.md promises, in MB (10^6), by services of ten endpoints.
GOALS = {1: 10, 10_000: 40, 50_000: 150}
# An agent that begins with so many services takes minutes: with a --soak of 10 and more.
LONG, SOAK = 50_000, 10


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    long = metafunc.config.getoption("soak") >= SOAK
    metafunc.parametrize("services", [n for n in GOALS if n < LONG or long])


def test_maps_take_what_is_needed(services: int) -> None:
    with Node(services, 10, f"sc-memory-{os.getpid()}") as node:
        node.start()
        assert node.open_flows(FLOWS) == FLOWS
        found = node.kernel_memory()
    megabytes = sum(found.values()) / 1e6
    largest = sorted(found.items(), key=lambda item: -item[1])[:5]
    assert megabytes <= GOALS[services], f"{megabytes:.1f} MB, most of it in {largest}"
