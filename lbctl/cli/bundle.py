"""`lbctl bundle`: what helps others to understand a node, in one archive, without secrets."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lbctl.cli import options
from lbctl.cli.root import require_root
from lbctl.errors import LbError


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE.tar.gz]")
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Include the last 8 MiB of this log file of the agent. Repeatable.",
)
@click.option(
    "--no-flows", is_flag=True, help="Leave out flows, and with them all clients' addresses."
)
@options.pin_dir
def command(file: Path | None, logs: tuple[Path, ...], no_flows: bool, pin_dir: Path) -> None:
    """Write a support bundle: status, configuration, maps as JSON, versions, facts about the kernel
    and the network, the findings of `doctor`, logs.

    Environment variables are left out, as is anything that looks like a token, a password, a key or
    a certificate. Addresses and the names of services, nodes and interfaces are included. No agent
    has to be running. The name of the file is printed on stdout.
    """
    from lbctl.bundle import collect

    require_root("bundle", "reads maps")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = file or Path(f"lbctl-bundle-{stamp}.tar.gz")
    try:
        missing = collect.write(target, pin_dir, logs, with_flows=not no_flows)
    except OSError as error:
        raise LbError(f"cannot write {target}: {error.strerror}") from error
    for sentence in missing:
        click.echo(f"not included: {sentence}", err=True)
    click.echo(str(target))
