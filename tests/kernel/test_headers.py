"""Every header of bpf_src compiles by itself, as a unit that uses it would compile it; with --soak
10, as each of those.

With tests/unit/test_headers.py, which knows names and not types.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec import structs

from ebpf.compile import compiler, source
from ebpf.compile.source import UNITS, Unit
from ebpf.errors import CompileError
from tests.kernel.support.apart import kept_apart

pytestmark = pytest.mark.kernel

SOAK = 10
_MARK = re.compile(r'^#line 1 "bpf_src/(\w+\.h)"$', re.MULTILINE)


def _headers(unit: Unit) -> list[Unit]:
    """A unit for each header of `unit`, with its defines and words."""
    found = sorted(set(_MARK.findall(source.join(unit, source.source_dir()))))
    return [structs.replace(unit, name=f"{unit.name} {file}", file=file) for file in found]


@pytest.fixture
def alone(soak: float) -> list[Unit]:
    """One for each header, of either family in turn: whole units are compiled for both."""
    if soak >= SOAK:
        return _alone()
    by_file: dict[str, list[Unit]] = {}
    for header in _alone():
        by_file.setdefault(header.file, []).append(header)
    return [of_file[turn % len(of_file)] for turn, of_file in enumerate(by_file.values())]


def _alone() -> list[Unit]:
    """Every header for every unit; once where two units compile the same text in the same way."""
    every = [header for unit in UNITS for header in _headers(unit)]
    by_text = {
        (header.defines, source.join(header, source.source_dir())): header for header in every
    }
    return list(by_text.values())


def test_every_header_stands_alone(alone: list[Unit]) -> None:
    with kept_apart():
        compiler.bundle(units=alone)


def test_every_header_stands_alone_in_the_trace_variant(alone: list[Unit]) -> None:
    """The others have shown above that they do: they do not ask which variant it is."""
    directory = source.source_dir()
    asking = [header for header in alone if "TRACE" in (directory / header.file).read_text()]
    assert asking
    with kept_apart():
        compiler.bundle("trace", units=asking)


def test_no_header_is_without_a_unit() -> None:
    compiled = {header.file for unit in UNITS for header in _headers(unit)}
    assert compiled == {path.name for path in source.source_dir().glob("*.h")}


def test_what_is_not_declared_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lone.h").write_text(
        "static inline int lone(void)\n{\n\treturn declared_nowhere();\n}\n"
    )
    with pytest.raises(CompileError, match="declared_nowhere"):
        compiler.bundle(directory=tmp_path, units=[Unit("lone", "lone.h")])
