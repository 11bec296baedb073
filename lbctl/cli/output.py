"""Prints records: as a table for people, as JSON or YAML for programs. Data only, on stdout."""

import itertools
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import click
import msgspec

FORMATS = ("table", "wide", "json", "yaml")

Row = TypeVar("Row")


class Column(NamedTuple, Generic[Row]):
    """A column: title, the text of a row's cell, and how to show it."""

    title: str
    cell: Callable[[Row], str]
    wide: bool = False
    number: bool = False


def write(
    rows: Sequence[Row], columns: Sequence[Column[Row]], output: str, *, empty: str = ""
) -> None:
    """Prints `rows` in one of FORMATS. `empty` is said on stderr when a table has no row.

    Columns are aligned here: rich takes seconds for ten thousand rows.
    """
    if write_data(rows, output):
        return
    if not rows:
        if empty:
            click.echo(empty, err=True)
        return
    shown = [column for column in columns if output == "wide" or not column.wide]
    head, *body = table(rows, shown, [column.title for column in shown])
    click.echo("\n".join([click.style(head, bold=True), *body]))


def table(
    rows: Sequence[Row], columns: Sequence[Column[Row]], head: Sequence[str] = ()
) -> list[str]:
    """The lines of a table of `rows`, under `head` if there is one."""
    lines = [[*head]] if head else []
    for row in rows:
        # A cell of several lines makes a row of several lines.
        cells = (column.cell(row).split("\n") for column in columns)
        lines += map(list, itertools.zip_longest(*cells, fillvalue=""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [_align(line, widths, columns) for line in lines]


def _align(cells: list[str], widths: list[int], columns: Sequence[Column[Row]]) -> str:
    aligned = (
        cell.rjust(width) if column.number else cell.ljust(width)
        for cell, width, column in zip(cells, widths, columns, strict=True)
    )
    return "  ".join(aligned).rstrip()


def write_data(value: object, output: str) -> bool:
    """Prints `value` if `output` is json or yaml, and says whether it was."""
    if output == "json":
        encoded = msgspec.json.format(msgspec.json.encode(value), indent=2)
        click.echo(encoded.decode())
        return True
    if output == "yaml":
        import yaml

        text = yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False, allow_unicode=True)
        click.echo(text, nl=False)
        return True
    return False


UNITS = ("", "K", "M", "G", "T", "P")


def count(number: int) -> str:
    """A number short enough for a table: up to 5 digits as they are, then 123K, 4.5M (by 1000)."""
    if number < 100_000:
        return str(number)
    return _short(number, 1000)


def size(octets: int) -> str:
    """Bytes for a table, in powers of 1024: 512, 64K, 1.5M."""
    return _short(octets, 1024)


def _short(number: int, base: int) -> str:
    value = float(number)
    for unit in UNITS:
        if value < base or unit == UNITS[-1]:
            break
        value /= base
    return f"{value:.1f}{unit}" if value < 10 and unit else f"{value:.0f}{unit}"


def duration(seconds: float) -> str:
    """An age for a table: 5s, 3m, 2h, 4d."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
