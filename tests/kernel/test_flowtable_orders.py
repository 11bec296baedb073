"""A claim looks at two banks, one after the other, while the flow that has the tuple moves from the
one to the other: at whichever look that happens, it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ebpf.growth import Growth
from ebpf.kernel import testrun
from ebpf.layouts import Bundle
from tests.kernel.support.flow_tables import PrivateTable, bundle_with, rings

pytestmark = pytest.mark.kernel

# Each look at a bank begins with a call of what meanwhile.c has. (table.c, beside it, has none.)
CALLS = (
    (
        "claim.h",
        "INLINE bool is_taken_on(",
        "#ifdef MEANWHILE\nINLINE void meanwhile(void);\n#endif\nINLINE bool is_taken_on(",
    ),
    (
        "claim.h",
        "	return buckets &&\n	       (is_taken_in(own, bank, first_bucket",
        "#ifdef MEANWHILE\n	meanwhile();\n#endif\n"
        "	return buckets &&\n	       (is_taken_in(own, bank, first_bucket",
    ),
)
OTHER_WAY_ROUND = (
    "claim.h",
    "	return is_taken_on(false, t, hash, key, generation, mine) ||\n"
    "	       is_taken_on(true, t, hash, key, generation, mine);",
    "	return is_taken_on(true, t, hash, key, generation, mine) ||\n"
    "	       is_taken_on(false, t, hash, key, generation, mine);",
)


def compiled(family: str, directory: Path, replaced: Sequence[tuple[str, str, str]] = ()) -> Bundle:
    defines = (("MEANWHILE", "1"),)
    return bundle_with("meanwhile.c", family, directory, (*replaced, *CALLS), defines)


@pytest.fixture(scope="module", params=["4", "6"])
def family(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def bundle(family: str, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return compiled(family, tmp_path_factory.mktemp("orders"))


def claimed(bundle: Bundle, family: str, when: int) -> bool:
    """Does somebody else get a tuple of a flow that moves before look number `when`?"""
    private = PrivateTable(bundle, family, 8)
    try:
        assert private.table.open(rings(private.enums, family, 1)) == 1
        growth = Growth(private, family)
        growth.begin(16)
        growth.leave()
        private.load()
        (flow,) = (cell for cell in private.table.view() if cell["kind"] == 0)
        attempt = private.records("attempts")
        attempt["ring"]["generation"] = flow["generation"]
        attempt["ring"]["cells"]["place"][0, 0] = flow["place"]
        _key_of(private, int(flow["place"]), attempt)
        attempt["when"] = when
        testrun.run(private.programs["claim_meanwhile"], bytes(64))
        looks, moved, got = (int(attempt[name][0]) for name in ("looks", "moved", "claimed"))
        assert bool(moved) == (1 <= when <= looks)
        return bool(got)
    finally:
        private.close()


def _key_of(private: PrivateTable, place: int, attempt: np.ndarray) -> None:
    cell = private.table.banks[1].cells[place & private.enums["PLACE_INDEX_MASK"]]
    attempt["key"][:] = 0
    if private.family == "4":
        attempt["key"] = cell["key"]
    else:
        for name in ("src", "dst", "sport", "dport"):
            attempt["key"][name] = cell[name]
        attempt["key"]["proto"] = 6


@pytest.mark.parametrize("when", [0, 1, 2], ids=["never", "before", "between"])
def test_a_flow_that_moves_keeps_its_tuple(bundle: Bundle, family: str, when: int) -> None:
    assert not claimed(bundle, family, when)


def test_looking_the_other_way_round_misses_it(tmp_path: Path) -> None:
    """Between its look at the new bank and that at the old one, the flow has gone there."""
    assert claimed(compiled("4", tmp_path, [OTHER_WAY_ROUND]), "4", 2)
