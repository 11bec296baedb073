"""Printing: tables for people, JSON and YAML for programs, numbers short enough to read."""

import json

import msgspec
import pytest
import yaml

from lbctl.cli import output
from lbctl.cli.output import Column


class Thing(msgspec.Struct, frozen=True):
    name: str
    number: int


THINGS = [Thing("one [bold]", 1), Thing("twenty-two", 22)]
COLUMNS: list[Column[Thing]] = [
    Column("NAME", lambda thing: thing.name),
    Column("NUMBER", lambda thing: str(thing.number), number=True),
    Column("TWICE", lambda thing: str(2 * thing.number), wide=True),
]


def test_a_table_has_aligned_columns_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(THINGS, COLUMNS, "table")
    assert capsys.readouterr().out.splitlines() == [
        "NAME        NUMBER",
        "one [bold]       1",
        "twenty-two      22",
    ]


def test_wide_has_more_columns(capsys: pytest.CaptureFixture[str]) -> None:
    output.write(THINGS, COLUMNS, "wide")
    assert capsys.readouterr().out.splitlines()[0].split() == ["NAME", "NUMBER", "TWICE"]


def test_long_lines_are_not_folded_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.write([Thing("x" * 500, 1)], COLUMNS, "table")
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_data_formats_carry_every_field(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    output.write(THINGS, COLUMNS, kind)
    text = capsys.readouterr().out
    read = json.loads(text) if kind == "json" else yaml.safe_load(text)
    assert read == [{"name": "one [bold]", "number": 1}, {"name": "twenty-two", "number": 22}]


def test_nothing_to_list_is_said_beside_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    output.write([], COLUMNS, "table", empty="no things")
    assert capsys.readouterr() == ("", "no things\n")
    output.write([], COLUMNS, "json", empty="no things")
    assert capsys.readouterr() == ("[]\n", "")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (99_999, "99999"), (123_456, "123K"), (4_560_000, "4.6M"), (10**19, "10000P")],
)
def test_counts(number: int, text: str) -> None:
    assert output.count(number) == text


@pytest.mark.parametrize(
    ("octets", "text"), [(0, "0"), (1023, "1023"), (1024, "1.0K"), (64 << 20, "64M")]
)
def test_sizes(octets: int, text: str) -> None:
    assert output.size(octets) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (200_000, "2d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text
