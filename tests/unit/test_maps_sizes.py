"""Sizes of maps, and that every map of the C has one."""

from __future__ import annotations

import re

import pytest
from msgspec import structs

from ebpf.compile import constants, source
from ebpf.errors import LayoutError
from ebpf.layouts import (
    ARRAY,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    PERCPU_ARRAY,
    PROG_ARRAY,
    PROGRAM_ARRAYS,
    RINGBUF,
    Bundle,
    Field,
    MapSpec,
    Record,
)
from ebpf.maps.declared import USES
from ebpf.maps.sizes import Sizes

GIB = 1 << 30
# As bcc's macros call them.
TYPES = {
    "hash": HASH,
    "lru_hash": LRU_HASH,
    "lpm_trie": LPM_TRIE,
    "array": ARRAY,
    "percpu_array": PERCPU_ARRAY,
    "prog": PROG_ARRAY,
    "ringbuf": RINGBUF,
}
WORD = Record("", 4, (Field("", 0, 4, 0, "u32"),))
SIZES = Sizes(10, 20, 30)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The maps of bpf_src/maps.h and the numbers of consts.h, uncompiled."""
    text = (source.source_dir() / "maps.h").read_text()
    found = re.findall(r'^BPF_F_TABLE\("(\w+)", [^,]+, [^,]+, (\w+), 1, [^)]+\);', text, re.M)
    assert len(found) == text.count("BPF_F_TABLE(")
    found += [("ringbuf", name) for name in re.findall(r"^BPF_RINGBUF_OUTPUT\((\w+)", text, re.M)]
    maps = {name: MapSpec(name, TYPES[kind], 0, WORD, WORD) for kind, name in found}
    enums = constants.constants((source.source_dir() / "consts.h").read_text())
    return Bundle("", "live", {}, maps, enums)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (1, (4096, 16384, 8192)),
        (2 * GIB, (32768, 131072, 65536)),
        (4 * GIB, (65536, 262144, 131072)),
        (24 * GIB, (131072, 524288, 1048576)),
        (1024 * GIB, (131072, 524288, 1048576)),
    ],
)
def test_bounds_go_by_the_machine(memory: int, expected: tuple[int, ...]) -> None:
    sizes = Sizes.automatic(memory)
    assert (sizes.services, sizes.endpoints, sizes.flows) == expected


def test_an_instance_begins_small_but_with_room_for_what_is_there() -> None:
    assert Sizes(2000, 100, 9000).at_first() == Sizes(1024, 100, 8192)
    assert Sizes(100, 100, 100).at_first() == Sizes(100, 100, 100)
    assert Sizes().at_first(100_000).flows == 262144
    assert Sizes(flows=50_000).at_first(100_000).flows == 50_000


def test_what_is_not_used_has_no_room(bundle: Bundle) -> None:
    enums = bundle.enums | {"REASON_MAX": 20}
    whole = structs.replace(bundle, enums=enums)
    without = Sizes(10, 20, 30, sockets=False).max_entries(whole)
    assert without["socket_choices"] == without["socket_peers"] == 1
    assert SIZES.max_entries(whole)["socket_peers"] > 1


def test_entries_follow_the_three_numbers_and_the_constants(bundle: Bundle) -> None:
    enums = bundle.enums | {"REASON_MAX": 20}
    entries = SIZES.max_entries(structs.replace(bundle, enums=enums))
    assert entries["control4a"] == entries["control6a"] == 10
    assert entries["cells4a"] == entries["states6a"] == 80
    assert entries["cells4b"] == 8
    assert entries["slots"] == 80
    assert entries["counters"] == 20
    # A place in 0.7 of the 32-byte cells for each, in buckets of 8 with a word of 8 bytes.
    keys = 5 * SIZES.services + 2 * SIZES.endpoints
    assert keys / 0.7 <= 8 * entries["frontends"] / (8 + 1 / 4) <= keys / 0.7 + 24
    assert entries["config"] == 1


def test_the_maps_of_the_c_and_those_declared_are_the_same(bundle: Bundle) -> None:
    assert (
        SIZES.max_entries(bundle).keys()
        == USES.keys()
        == bundle.maps.keys() - PROGRAM_ARRAYS.keys()
    )


def test_a_map_that_is_not_declared_is_an_error_and_no_map_of_one_entry(bundle: Bundle) -> None:
    more = bundle.maps | {"forgotten": MapSpec("forgotten", HASH, 0, WORD, WORD)}
    with pytest.raises(LayoutError, match="map forgotten is not declared") as caught:
        SIZES.max_entries(structs.replace(bundle, maps=more))
    assert "declared.py" in caught.value.hint


def test_a_map_of_another_kind_than_declared_is_an_error(bundle: Bundle) -> None:
    other = bundle.maps | {"services": MapSpec("services", HASH, 0, WORD, WORD)}
    with pytest.raises(LayoutError, match="map services is declared as another kind"):
        SIZES.max_entries(structs.replace(bundle, maps=other))


def test_a_constant_that_is_not_there_is_an_error(bundle: Bundle) -> None:
    fewer = {name: value for name, value in bundle.enums.items() if name != "REASON_MAX"}
    with pytest.raises(LayoutError, match="map counters is sized by REASON_MAX"):
        SIZES.max_entries(structs.replace(bundle, enums=fewer))
