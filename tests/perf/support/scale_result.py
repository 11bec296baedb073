"""One line of what tests.perf.scale writes."""

from __future__ import annotations

import msgspec

KERNEL = "kernel: "  # begins the measures of single maps


class Result(msgspec.Struct):
    """One measure at one size; `values` one per round."""

    services: int
    endpoints: int
    measure: str
    unit: str
    values: list[float]
