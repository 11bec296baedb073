"""Which bank of a table is whose, by its phase."""

from __future__ import annotations

import numpy as np
import pytest

from ebpf.compile import constants, source
from ebpf.flowtable import program_names, set_size

ENUMS = constants.constants((source.source_dir() / "consts.h").read_text())
NAMES = [
    f"{part}{family}{bank}"
    for part in ("table", "control", "cells", "states")
    for family in "46"
    for bank in "ab"
] + ["held4", "config", "cells4x"]


def phases(phase: str) -> dict[str, int]:
    return {"4": ENUMS[phase], "6": ENUMS["PHASE_A"]}


@pytest.mark.parametrize("phase", ["PHASE_A", "PHASE_A_LOOKS", "PHASE_B_LEFT"])
def test_programs_open_in_bank_a(phase: str) -> None:
    names = program_names(NAMES, phases(phase), ENUMS)
    assert names == dict(zip(NAMES, NAMES, strict=True))


@pytest.mark.parametrize("phase", ["PHASE_A_LEFT", "PHASE_B", "PHASE_B_LOOKS"])
def test_programs_open_in_bank_b(phase: str) -> None:
    """They call it a; the other family's stay as they are."""
    names = program_names(NAMES, phases(phase), ENUMS)
    assert names["cells4a"] == "cells4b"
    assert names["cells4b"] == "cells4a"
    assert names["table4a"] == "table4b"
    assert names["cells6a"] == "cells6a"
    assert names["held4"] == "held4"
    assert sorted(names.values()) == sorted(NAMES)


def test_a_share_is_a_sixteenth_of_the_cells() -> None:
    record = np.zeros(1, [("buckets", "u4"), ("share", "u4")])
    set_size(record, 1024)
    assert record[0].tolist() == (1024, 512)
