"""`lbctl flow`: the connections being translated, to look at or to end."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ebpf.errors import LbError
from lbctl.cli import objects, options
from lbctl.cli.output import Column, count, duration, size, write
from lbctl.datapath import consts
from lbctl.inspect import flows, names
from lbctl.inspect.flowfilter import STATES, FlowFilter, Target
from lbctl.inspect.flows import PROTOCOLS, FlowRow
from lbctl.inspect.opened import open_instance

if TYPE_CHECKING:
    from ebpf.instance import Instance


def target(ctx: click.Context, param: click.Parameter, value: str | None) -> Target | None:
    try:
        return Target.parse(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


TARGET = "ADDRESS[:PORT]|NET/BITS"
_FILTERS = (
    click.option(
        "--service",
        metavar="SERVICE",
        help="Only flows of this service: NAME or NAMESPACE/NAME, optionally with :PORT.",
    ),
    click.option("--client", callback=target, metavar=TARGET, help="Only flows from this client."),
    click.option("--backend", callback=target, metavar=TARGET, help="Only flows to this backend."),
    click.option(
        "--protocol",
        type=click.Choice([*PROTOCOLS.values()], case_sensitive=False),
        help="Only flows of this protocol.",
    ),
    click.option(
        "--state",
        "states",
        type=click.Choice([*STATES.values()]),
        multiple=True,
        help="Only flows in this state. Repeatable.",
    ),
)


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that select flows; a flow has to match all that are given."""
    for option in reversed(_FILTERS):
        function = option(function)
    return function


@click.group()
def command() -> None:
    """Connections that are being translated on this node."""


@command.command("list")
@filters
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="Stop after this many; 0 lists all.",
)
@options.naming
@options.output
@options.pin_dir
def list_command(
    limit: int,
    names: bool,
    kubeconfig: Path | None,
    output: str,
    pin_dir: Path,
    **chosen: Any,
) -> None:
    """List flows: which client talks to which backend through which service.

    A flow has to match all filters that are given. TIME is the time since its last packet. Packets
    and bytes count both directions; -o wide has each one.

    \b
    lbctl flow list --service default/web --state established
    lbctl flow list --client 10.1.0.0/24 -o json
    """
    with open_instance(pin_dir) as instance:
        found = flows.list_flows(instance, _filter(instance, **chosen))
        rows = list(itertools.islice(found, limit or None))
        more = bool(limit) and next(found, None) is not None
    if names or kubeconfig:
        rows = _named(rows, pin_dir, kubeconfig)
    write(rows, COLUMNS, output, empty="no matching flows")
    if more:
        click.echo(f"only the first {limit} are shown: raise --limit, or use a filter", err=True)


def _named(rows: list[FlowRow], pin_dir: Path, kubeconfig: Path | None) -> list[FlowRow]:
    places = objects.places(pin_dir, kubeconfig)

    def name(endpoint: str) -> str:
        return places.named(endpoint.rpartition(":")[0].strip("[]")).name

    return [
        msgspec.structs.replace(row, client_name=name(row.client), backend_name=name(row.backend))
        for row in rows
    ]


def _shown(endpoint: str, name: str) -> str:
    return f"{name}:{endpoint.rpartition(':')[2]}" if name else endpoint


@command.command()
@filters
@options.yes
@options.pin_dir
def flush(yes: bool, pin_dir: Path, **chosen: Any) -> None:
    """End flows, in both directions.

    A flow has to match all filters that are given; without any, every flow is ended. The next
    packet of a UDP flow is sent to a newly chosen backend. A TCP connection is reset at its next
    packet, since no other backend could continue it.

    \b
    lbctl flow flush --backend 10.1.0.7 --protocol tcp
    """
    with open_instance(pin_dir, readonly=False) as instance:
        wanted = _filter(instance, **chosen)
        found = [
            (table, rings.forward)
            for table in instance.flow_tables
            for rings in flows.matching(table, wanted)
        ]
        total = sum(len(cells) for _, cells in found)
        if not total:
            click.echo("no matching flows", err=True)
            return
        connections = sum(int((cells["proto"] == socket.IPPROTO_TCP).sum()) for _, cells in found)
        if not yes:
            question = f"End {_flows(total)}, {connections} of them TCP?"
            click.confirm(question, abort=True, err=True)
        ended = sum(
            table.end(cells["place"], cells["generation"], consts.END_DELETED)
            for table, cells in found
        )
    click.echo(f"ended {_flows(ended)}", err=True)


def _flows(number: int) -> str:
    return "1 flow" if number == 1 else f"{number} flows"


def _filter(
    instance: Instance,
    service: str | None,
    client: Target | None,
    backend: Target | None,
    protocol: str | None,
    states: tuple[str, ...],
) -> FlowFilter:
    numbers = {name: number for number, name in PROTOCOLS.items()}
    by_name = {name: number for number, name in STATES.items()}
    if client and backend and client.prefix.family != backend.prefix.family:
        raise LbError(
            "--client and --backend are of different address families; no flow has both",
            "Give both as IPv4 or both as IPv6.",
            exit_code=2,
        )
    return FlowFilter(
        services=tuple(names.find(instance.names, service)) if service else None,
        client=client,
        backend=backend,
        protocol=numbers[protocol.upper()] if protocol else 0,
        states=tuple(by_name[state] for state in states) or tuple(STATES),
    )


COLUMNS: list[Column[FlowRow]] = [
    Column("SERVICE", lambda row: row.service.label),
    Column("PROTO", lambda row: row.protocol),
    Column("CLIENT", lambda row: _shown(row.client, row.client_name)),
    Column("ADDRESS", lambda row: row.address, wide=True),
    Column("BACKEND", lambda row: _shown(row.backend, row.backend_name)),
    Column("STATE", lambda row: row.state),
    Column("KIND", lambda row: row.kind, wide=True),
    Column("SEEN AS", lambda row: f":{row.client_port}" if row.client_port else "-", wide=True),
    Column("TIME", lambda row: duration(row.idle_seconds), number=True),
    Column("AGE", lambda row: duration(row.age_seconds), wide=True, number=True),
    Column("PACKETS", lambda row: count(row.packets_in + row.packets_out), number=True),
    Column("BYTES", lambda row: size(row.bytes_in + row.bytes_out), number=True),
    Column("PACKETS IN", lambda row: count(row.packets_in), wide=True, number=True),
    Column("BYTES IN", lambda row: size(row.bytes_in), wide=True, number=True),
]
