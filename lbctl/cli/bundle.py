"""`lbctl bundle`: what helps others to understand a node, in one archive, without secrets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from lbctl.cli import options
from lbctl.errors import LbError, UsageError


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE.tar.gz]")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A log of the agent; its last 8 MiB. Repeatable.",
)
@click.option("--no-flows", is_flag=True, help="Without flows: no address of a client is in it.")
@options.pin_dir
def command(file: Path | None, logs: tuple[Path, ...], no_flows: bool, pin_dir: Path) -> None:
    """Write a support bundle: status, configuration, maps in JSON, versions, facts about the kernel
    and the network, what `doctor` finds, logs.

    Environments are left out, and from every text what looks like a token, a password, a key or a
    certificate. Addresses, and names of services, nodes and interfaces are in it. It needs no
    agent. The name of the file goes to stdout.
    """
    from lbctl.bundle import collect

    if os.geteuid() != 0:
        raise UsageError("bundle needs root: it reads maps", "Run it with sudo.")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = file or Path(f"lbctl-bundle-{stamp}.tar.gz")
    try:
        missing = collect.write(target, pin_dir, logs, with_flows=not no_flows)
    except OSError as error:
        raise LbError(f"cannot write {target}: {error.strerror}") from error
    for sentence in missing:
        click.echo(f"not in it: {sentence}", err=True)
    click.echo(str(target))
