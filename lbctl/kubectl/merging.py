"""Tables of several nodes as one, and what is told otherwise under the nodes' names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

_NUMBER = re.compile(r"-|[\d.,]+ ?[A-Za-z%]{0,2}")


def merged_table(
    parts: Sequence[tuple[str, Sequence[str]]], shown: Callable[[str], str] = str
) -> list[str]:
    """Tables with the same columns as one, the node in front, each cell as it is to be `shown`. A
    table of another shape (another version of lbctl) comes after them, as it is."""
    rows: list[list[str]] = []
    others: list[str] = []
    for node, lines in parts:
        head, *body = columns_of(lines)
        if not rows:
            rows.append(["NODE", *head])
        if ["NODE", *head] == rows[0]:
            rows += [[node, *map(shown, cells)] for cells in body]
        else:
            others += [f"== {node} ==", *lines]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    numbers = [
        len(rows) > 1 and all(_NUMBER.fullmatch(row[place]) for row in rows[1:] if row[place])
        for place in range(len(widths))
    ]
    aligned = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [*aligned, *others]


def columns_of(lines: Sequence[str]) -> list[list[str]]:
    """The cells of an aligned table: columns stand apart by two places that are blank in all lines,
    and each has a title."""
    width = max(map(len, lines))
    padded = [line.ljust(width) for line in lines]
    blank = [all(line[place] == " " for line in padded) for place in range(width)]
    spans: list[tuple[int, int]] = []
    for start, end in _spans(blank):
        if spans and not padded[0][start:end].strip():
            start = spans.pop()[0]
        spans.append((start, end))
    return [[line[start:end].strip() for start, end in spans] for line in padded]


def _spans(blank: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Start and end of each run without two blanks in a row."""
    start = 0
    for place in range(1, len(blank)):
        if blank[place] and blank[place - 1]:
            if place - 1 > start:
                yield start, place - 1
            start = place + 1
    if start < len(blank):
        yield start, len(blank)
