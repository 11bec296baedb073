"""`lbctl cleanup`: removes an instance from the kernel. Nothing else ever does."""

from __future__ import annotations

from pathlib import Path

import click

from lbctl import removal
from lbctl.cli import options


@click.command()
@options.yes
@click.option("--force", is_flag=True, help="Also while an agent runs, which it will not survive.")
@options.pin_dir
def command(yes: bool, force: bool, pin_dir: Path) -> None:
    """Remove everything an instance pinned or attached, and nothing else.

    Programs leave their interfaces, maps and pins go; connections through services end. It needs no
    agent, and is refused while one runs. Filters of clsact (on kernels before 6.6) can only be
    removed from the network namespace they are in: run it there.
    """
    found = removal.survey(pin_dir)
    with removal.exclusive(pin_dir, force=force):
        click.echo(f"{pin_dir}: {found}", err=True)
        if not yes:
            click.confirm("Remove all of it?", abort=True, err=True)
        removal.remove(pin_dir)
    click.echo("removed", err=True)
