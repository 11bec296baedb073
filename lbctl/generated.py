"""Parts of documents that are made from declarations, between marks that say by which command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping


def fill(text: str, command: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The text, with what is between the marks of this command made anew."""
    place = re.compile(rf"(<!-- {re.escape(command)}: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}\n{parts[found[2]]()}\n\n{found[3]}", text)


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = (
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
    )
    return "\n".join(lines)
