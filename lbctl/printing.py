"""Tables and texts made with rich, printed on stdout for whoever reads there."""

from __future__ import annotations

import sys

import click

# What is not printed to a terminal is never folded: something reads its lines.
UNFOLDED = 100_000


def print_rich(renderable: object) -> None:
    """Prints a rich renderable on stdout; unfolded and without colour when that is no terminal."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=None if terminal else UNFOLDED,
        markup=False,
        highlight=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(renderable)
    lines = (line.rstrip() for line in capture.get().splitlines())
    click.echo("\n".join(lines))
