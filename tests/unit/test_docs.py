"""What the documents name exists: tests, vectors, files and headings; and all reasons, maps,
programs and commands are in them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbctl.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])
SEMANTICS = ROOT / "docs" / "semantics.md"
OPERATIONS = ROOT / "docs" / "operations.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
SHARED = Path(os.environ.get("LBCTL_CONFORMANCE") or ROOT.parent / "shared" / "conformance")
OWN = ROOT / "tests" / "conformance" / "vectors"
_TEST = re.compile(r"`((?:unit|kernel|lab|conformance|perf)/\w+\.py)(?:::(\w+))?`")
_FILE = re.compile(
    r"`((?:bpf_src|ebpf|lbctl|tests|deploy|docs|examples)/(?:[\w./*-]*[./][\w*-]*)?)`"
)
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def plain(text: str) -> str:
    """Without code blocks, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """As a forge makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", plain(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(plain(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", [SEMANTICS, OPERATIONS, RELIABILITY], ids=lambda path: path.name)
def test_tests_that_are_named_exist(path: Path) -> None:
    named = _TEST.findall(path.read_text())
    assert named
    for file, test in named:
        text = (ROOT / "tests" / file).read_text()
        if test:
            assert re.search(rf"^ *def {test}\(", text, re.MULTILINE), f"{file}::{test}"


def test_every_row_of_rules_is_shown_by_something() -> None:
    rules = SEMANTICS.read_text().partition("\n## Where we differ")[0]
    rows = list(last_cells(rules))
    assert len(rows) > 30
    for cell in rows:
        assert "`" in cell, cell


def last_cells(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith(("|---", "| rule |")):
            yield line.rstrip(" |").rpartition(" | ")[2]


def test_every_rule_of_the_suite_is_there() -> None:
    cited = re.findall(r"\[([\d, ]+)\]", SEMANTICS.read_text())
    numbers = {int(number) for group in cited for number in group.split(",")}
    assert numbers == set(range(1, 29))


def test_vectors_that_are_named_exist() -> None:
    directories = [OWN, SHARED]
    files = [file for directory in directories for file in directory.glob("*.json")]
    known = {case["name"] for file in files for case in json.loads(file.read_text())}
    rules = SEMANTICS.read_text().partition("\n## Where we differ")[0]
    named = {word for cell in last_cells(rules) for word in re.findall(r"`([^`]+)`", cell)} - {
        f"{file}::{test}" for file, test in _TEST.findall(rules)
    }
    assert len(named) > 60
    if not any(SHARED.glob("*.json")):
        pytest.skip(f"no vectors in {SHARED}; LBCTL_CONFORMANCE names their directory")
    assert not named - known


def test_every_reason_is_described() -> None:
    header = (ROOT / "bpf_src" / "consts.h").read_text()
    body = re.search(r"enum reason \{(.*?)\};", header, re.DOTALL)
    assert body
    reasons = set(re.findall(r"^\s*REASON_(\w+),", body[1], re.MULTILINE)) - {"MAX"}
    assert len(reasons) > 15
    text = (ROOT / "docs" / "datapath.md").read_text()
    assert not {r.lower() for r in reasons if f"`{r.lower()}`" not in text}


def test_every_command_is_described() -> None:
    table = (ROOT / "docs" / "cli.md").read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \| ", table, re.MULTILINE)
    named = {re.split(r"[` ]", row)[1] for row in rows}
    assert named == set(COMMANDS)


def test_files_that_are_named_exist() -> None:
    """Paths from the root, like `ebpf/maps/` and `tests/lab/*.py`; NAME stands for any."""
    missing = []
    for path in DOCS:
        for named in _FILE.findall(path.read_text()):
            pattern = named.replace("NAME", "*").rstrip("/")
            if not any(ROOT.glob(pattern)):
                missing.append(f"{path.name}: {named}")
    assert not missing


def test_every_map_is_drawn() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    section = text.partition("\n## The maps")[2].partition("\n## ")[0]
    assert not map_names() - set(re.findall(r"\w+", section))


def test_tail_calls_are_drawn_as_they_are() -> None:
    """Every program of enum program is in the drawing; `sctp` is named below it."""
    header = (ROOT / "bpf_src" / "consts.h").read_text()
    programs = {name.lower() for name in re.findall(r"\bPROGRAM_(\w+)4\b", header)}
    assert len(programs) > 10
    text = (ROOT / "docs" / "design.md").read_text()
    section = text.partition("\n## The programs")[2].partition("\n## ")[0]
    assert not programs - set(re.findall(r"\w+", section))


def test_every_map_is_described() -> None:
    words = set(re.findall(r"\w+", (ROOT / "docs" / "datapath.md").read_text()))
    assert not map_names() - words


def map_names() -> set[str]:
    header = (ROOT / "bpf_src" / "maps.h").read_text()
    names = set(re.findall(r"^BPF_F?_?TABLE\(\"\w+\", [^,]+, [^,]+, (\w+),", header, re.MULTILINE))
    assert {"frontends", "cells6a", "programs"} <= names
    return names
