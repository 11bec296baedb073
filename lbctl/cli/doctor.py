"""`lbctl doctor`: what this kernel, container and machine offer, and what to do about the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import options
from lbctl.cli.output import Column, write
from lbctl.errors import LbError, UsageError

if TYPE_CHECKING:
    from lbctl.host.requirements import Requirement
    from lbctl.host.settings import Answer

FOUND_WANTING = 5
_ANSWER = "answer"
_TRIALS = ("DSR: UDP", "DSR: IP in IP")  # names of what is tried
_LONGEST = 600.0  # seconds for which trials are answered


@click.command()
@click.option(
    "--dsr",
    is_flag=False,
    flag_value=_ANSWER,
    metavar="[NODE]",
    help="Try DSR (direct server return) between two nodes: on one, give no address, and it "
    "answers; on the other, give the first one's address.",
)
@click.option(
    "--service-address",
    metavar="ADDRESS",
    help="With --dsr NODE: the address to answer from, such as one of a load balancer.",
)
@click.option(
    "--dsr-port",
    type=click.IntRange(1, 65535),
    default=6080,
    show_default=True,
    metavar="PORT",
    help="With --dsr: the UDP port that encapsulated packets are sent to.",
)
@options.output
@options.pin_dir
def command(
    output: str, pin_dir: Path, dsr: str | None, service_address: str | None, dsr_port: int
) -> None:
    """Check whether this machine has what lbctl needs, and say how to fix what is missing.

    Nothing is changed. Exits with code 5 if something required is MISSING. What is only advised
    works without, at some cost. If a service uses DSR, its requirements are checked too.

    \b
    lbctl doctor
    lbctl doctor --dsr                          # on one node; runs for ten minutes at most
    lbctl doctor --dsr 172.18.0.12 --service-address 192.0.2.80    # on the other
    """
    from lbctl.host import requirements, straight

    if dsr == _ANSWER:
        _answer(dsr_port)
        return
    if dsr is not None:
        found = _try(dsr, service_address, dsr_port)
        write(found, COLUMNS, output)
        if not any(item.ok for item in found if item.name.startswith(_TRIALS)):
            click.echo("no answer came straight back from there", err=True)
            sys.exit(FOUND_WANTING)
        return
    found = requirements.check(pin_dir)
    if _uses_dsr(pin_dir):
        found += _advice((name, check()) for name, check in straight.CHECKS.items())
    write(found, COLUMNS, output)
    missing = [item.name for item in found if item.ok is False and item.required]
    if missing:
        click.echo(f"lbctl cannot work here: {', '.join(missing)}", err=True)
        sys.exit(FOUND_WANTING)


def _answer(port: int) -> None:
    from lbctl.host import dsrtrial

    click.echo(f"answering trials for {_LONGEST:.0f} s; Ctrl-C stops it", err=True)
    try:
        dsrtrial.answering(port, click.echo, time.monotonic() + _LONGEST)
    except KeyboardInterrupt:
        return


def _try(node: str, service: str | None, port: int) -> list[Requirement]:
    """What this machine's part of it needs, and what came of trying."""
    from lbctl.addresses import format_address, parse_address
    from lbctl.host import dsrtrial, straight

    if service is None:
        raise UsageError(
            "--dsr NODE needs an address to answer from",
            "Give one of a load balancer, or one that no machine has: --service-address 192.0.2.80",
        )
    try:
        asked, called = (format_address(parse_address(text)) for text in (node, service))
    except ValueError as error:
        raise UsageError(str(error), "Give addresses like 172.18.0.12 or fd00:18::12.") from error
    local = ((name, check()) for name, check in straight.CHECKS.items())
    return _advice((*local, *dsrtrial.asking(asked, called, port)))


def _advice(answers: Iterable[tuple[str, Answer]]) -> list[Requirement]:
    from lbctl.host.requirements import Requirement

    return [
        Requirement(name, answer.ok, answer.detail, answer.remedy, required=False)
        for name, answer in answers
    ]


def _uses_dsr(pin_dir: Path) -> bool:
    """Whether a service of the instance there is answered so; without one, none is."""
    from lbctl.inspect.opened import open_instance
    from lbctl.inspect.services import any_dsr

    try:
        with open_instance(pin_dir) as instance:
            return any_dsr(instance)
    except LbError:
        return False


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
