"""Jiffies are what ebpf/kernel/clock.py makes of CLOCK_MONOTONIC."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest

from ebpf import maps
from ebpf.compile import compiler
from ebpf.compile.source import Unit
from ebpf.kernel import testrun
from ebpf.kernel.clock import kernel_clock
from ebpf.programs import load

pytestmark = pytest.mark.kernel


def test_a_program_and_python_read_the_same_clock() -> None:
    """To half a beat, which is less than any timeout cares for."""
    unit = Unit("jiffies", "jiffies.c")
    bundle = compiler.bundle(directory=Path(__file__).parent / "support", units=[unit])
    made = cast(maps.ArrayMap, maps.create(bundle.maps["jiffies"], 1))
    program = load(bundle.programs["read_jiffies"], {"jiffies": made.fd})
    clock = kernel_clock()
    try:
        before = clock.jiffies(time.monotonic())
        testrun.run(program, bytes(64))
        after = clock.jiffies(time.monotonic())
        assert before - 128 <= int(made.records[0]) <= after + 128
    finally:
        os.close(program)
        made.close()
