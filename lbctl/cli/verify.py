"""`lbctl verify`: what the kernel has against what the API says now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl import status
from lbctl.cli import objects, options
from lbctl.cli.doctor import FOUND_WANTING
from lbctl.cli.output import Column, write, write_data
from lbctl.cli.root import require_root

if TYPE_CHECKING:
    from lbctl.verify.check import Verified
    from lbctl.verify.difference import Difference


@click.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what differs: the agent does it, or this command if none is running.",
)
@options.output
@objects.question
def command(repair: bool, output: str, pin_dir: Path, **asked: Any) -> None:
    """Compare what is in the kernel with what the API says now, and list the differences.

    Compares services (addresses, endpoints, policies), programs on interfaces and sockets, pins and
    flows. The objects are read again from the agent's source, unless options name another one.
    Differences are checked a second time, so changes in progress do not count. Run it in the node's
    network namespace. (The agent itself constantly checks that its maps still hold what it wrote.)

    Exits with code 5 if something differs; with --repair, if it still does afterwards.

    \b
    lbctl verify --repair
    lbctl verify -o json | jq '.differences[].object'
    """
    from lbctl.inspect.opened import open_instance
    from lbctl.verify import check
    from lbctl.verify.objects import Question

    require_root("verify", "reads maps")
    if not status.running_agent(pin_dir):
        open_instance(pin_dir).close()  # says what to do if there is none
    with objects.log_as_notes():
        found = check.verify(Question(pin_dir=pin_dir, **asked), objects.say, repair=repair)
    if not write_data(found, output):
        _print(found, output)
    if found.differences:
        sys.exit(FOUND_WANTING)


def _print(found: Verified, output: str) -> None:
    for note in found.notes:
        objects.say(note)
    write(found.differences, COLUMNS, output)
    if found.repaired:
        head = "repaired" if not found.differences else "\nrepaired"
        click.echo(click.style(head, bold=True))
        write(found.repaired, COLUMNS, output)
    number = len(found.differences)
    what = "nothing differs" if not number else f"{number} {_plural(number)}"
    who = f"agent {found.agent}" if found.agent else "no agent"
    click.echo(
        f"{what}: {found.services} services of {found.objects}, node {found.node}, {who}", err=True
    )


def _plural(number: int) -> str:
    return "difference" if number == 1 else "differences"


COLUMNS: list[Column[Difference]] = [
    Column("KIND", lambda item: item.kind),
    Column("OBJECT", lambda item: item.object),
    Column("WHAT", lambda item: item.what),
]
