"""`lbctl doctor`: what this kernel, container and machine offer, and what to do about the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import options
from lbctl.cli.output import Column, write

if TYPE_CHECKING:
    from lbctl.host.requirements import Requirement

FOUND_WANTING = 5


@click.command()
@options.output
@options.pin_dir
def command(output: str, pin_dir: Path) -> None:
    """Check what lbctl needs of this machine; say what to do about what is missing.

    Reads and tries, changes nothing. Returns 5 if something is missing that it cannot do without;
    what is only advised costs something, but is no obstacle.
    """
    from lbctl.host import requirements

    found = requirements.check(pin_dir)
    write(found, COLUMNS, output)
    missing = [item.name for item in found if item.ok is False and item.required]
    if missing:
        click.echo(f"lbctl cannot work here: {', '.join(missing)}", err=True)
        sys.exit(FOUND_WANTING)


def _result(item: Requirement) -> str:
    if item.ok:
        return "ok"
    if item.ok is None:
        return "unknown"
    return "MISSING" if item.required else "advised"


def _detail(item: Requirement) -> str:
    return f"{item.detail}\n→ {item.remedy}" if item.remedy else item.detail


COLUMNS: list[Column[Requirement]] = [
    Column("CHECK", lambda item: item.name),
    Column("RESULT", _result),
    Column("FOUND", _detail),
]
