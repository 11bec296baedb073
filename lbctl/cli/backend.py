"""`lbctl backend`: the endpoints that services translate to."""

from __future__ import annotations

from pathlib import Path

import click

from lbctl.cli import options
from lbctl.cli.output import Column, count, write
from lbctl.inspect import backends
from lbctl.inspect.backends import BackendRow
from lbctl.inspect.opened import open_instance


@click.group()
def command() -> None:
    """Endpoints of services, as programmed on this node; one row per service port."""


@command.command("list", short_help="List backends: all, or those of a service.")
@click.argument("service", default="")
@options.output
@options.pin_dir
def list_command(service: str, output: str, pin_dir: Path) -> None:
    """List backends: all, or those of SERVICE (NAME or NAMESPACE/NAME, optionally with :PORT).

    A backend that its service no longer has is listed as leaving until its last connection ends.
    FLOWS counts the connections that go through this node now.

    \b
    lbctl backend list default/web
    lbctl backend list -o json | jq '.[] | select(.serving | not)'
    """
    with open_instance(pin_dir) as instance:
        rows = backends.list_backends(instance, service)
    write(rows, COLUMNS, output, empty=f"no backends of {service or 'any service'} at {pin_dir}")


COLUMNS: list[Column[BackendRow]] = [
    Column("SERVICE", lambda row: row.service.label),
    Column("PROTO", lambda row: row.service.protocol),
    Column("BACKEND", lambda row: row.endpoint),
    Column("STATE", lambda row: "serving" if row.serving else "leaving"),
    Column("NODE", lambda row: "this" if row.here else "other"),
    Column("WEIGHT", lambda row: str(row.weight), wide=True, number=True),
    Column("FLOWS", lambda row: count(row.flows), number=True),
    Column("SETS", lambda row: "+".join(row.sets) or "-", wide=True),
    Column("ID", lambda row: str(row.id), wide=True, number=True),
    Column("GENERATION", lambda row: str(row.generation), wide=True, number=True),
]
