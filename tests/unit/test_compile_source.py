"""Joining sources, and reading their constants."""

from __future__ import annotations

from pathlib import Path

import pytest

from ebpf.compile import constants, source
from ebpf.compile.source import Unit
from ebpf.errors import CompileError


def _write(directory: Path, **files: str) -> Path:
    made = directory / "bpf_src"
    made.mkdir()
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        (made / f"{stem}.{suffix}").write_text(text)
    return made


def test_includes_are_expanded_once_with_markers(tmp_path: Path) -> None:
    made = _write(
        tmp_path,
        tc_c='#include <linux/bpf.h>\n#include "a.h"\n#include "b.h"\nint x;\n',
        a_h='#pragma once\n#include "b.h"\nint a;\n',
        b_h="int b;\n",
    )
    assert source.join(Unit("t", "tc.c"), made).splitlines() == [
        '#line 1 "bpf_src/tc.c"',
        "#include <linux/bpf.h>",
        '#line 1 "bpf_src/a.h"',
        "",
        '#line 1 "bpf_src/b.h"',
        "int b;",
        '#line 3 "bpf_src/a.h"',
        "int a;",
        '#line 3 "bpf_src/tc.c"',
        "",
        "int x;",
    ]


def test_words_are_replaced_outside_of_directives(tmp_path: Path) -> None:
    made = _write(tmp_path, tc_c="#define FLOWS flows4\nFLOWS.lookup(FLOWS_LRU, NFLOWS);\n")
    unit = Unit("t", "tc.c", (), (("FLOWS", "flows6"), ("FLOWS_LRU", "flows6_lru")))
    assert source.join(unit, made).splitlines()[1:] == [
        "#define FLOWS flows4",
        "flows6.lookup(flows6_lru, NFLOWS);",
    ]


def test_a_missing_include_names_who_wants_it(tmp_path: Path) -> None:
    made = _write(tmp_path, tc_c='\n#include "none.h"\n')
    with pytest.raises(CompileError, match=r"none\.h.*included by bpf_src/tc\.c:2"):
        source.join(Unit("t", "tc.c"), made)


def test_constants_of_every_form() -> None:
    text = """
    /* #define GONE 1 */
    #define SHIFT 3  // three
    #define LONG (1ULL << 63)
    #define BOTH (SHIFT | 0x10u)
    #define MACRO(x) ((x) + 1)
    #define TEXT "words"
    enum a { A, B = 4, /* gap, with a comma */ C, };
    enum { D = BOTH, E };
    """
    assert constants.constants(text) == {
        "SHIFT": 3,
        "LONG": 1 << 63,
        "BOTH": 19,
        "A": 0,
        "B": 4,
        "C": 5,
        "D": 19,
        "E": 20,
    }


def test_an_enumerator_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(CompileError, match="X"):
        constants.constants("enum { X = sizeof(int) };")


def test_assertions_say_every_value_in_c() -> None:
    assert constants.assertions({"A": 1, "B": 1 << 63}).splitlines()[1:] == [
        '_Static_assert((unsigned long long)(A) == 0x1ULL, "A");',
        '_Static_assert((unsigned long long)(B) == 0x8000000000000000ULL, "B");',
    ]
