"""`lbctl service`: what is programmed for each service port."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl import status
from lbctl.cli import ipvsadm, options
from lbctl.cli.output import Column, count, size, write, write_data
from lbctl.inspect import backends, load, services
from lbctl.inspect.backends import BackendRow
from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import AddressRow, ServiceRow
from lbctl.resolve.hints import NO_HINTS

if TYPE_CHECKING:
    from ebpf.instance import Instance

LOCAL = "Local"
IPVSADM = "ipvsadm"


@click.group()
def command() -> None:
    """Service ports, as programmed on this node.

    One row is one port of one service in one address family. Counters start when the port is first
    programmed, and survive restarts of the agent.
    """


@command.command("list")
@click.option(
    "-n", "--namespace", default="", metavar="NS", help="Only services in this namespace."
)
@options.output_of(IPVSADM)
@options.pin_dir
def list_command(namespace: str, output: str, pin_dir: Path) -> None:
    """List service ports with addresses, number of backends, and traffic.

    \b
    lbctl service list -n kube-system
    lbctl service list -o json | jq '.[] | select(.cluster == 0) | .name.text'
    lbctl service list -o ipvsadm
    """
    with open_instance(pin_dir) as instance:
        rows = services.list_services(instance, namespace, instance.flow_tables)
        if output == IPVSADM:
            click.echo("\n".join(_as_ipvsadm(instance, rows)))
            return
    where = f" in namespace {namespace}" if namespace else ""
    write(rows, COLUMNS, output, empty=f"no services{where} at {pin_dir}")


def _as_ipvsadm(instance: Instance, rows: list[ServiceRow]) -> Iterator[str]:
    by_port = defaultdict(list)
    for backend in backends.list_backends(instance):
        by_port[backend.service.text].append(backend)
    flows = load.count_by_state(instance)
    leaving = {
        port: [b for b in found if b.serving or (port, b.endpoint) in flows]
        for port, found in by_port.items()
    }
    return ipvsadm.lines(rows, leaving, flows)


@command.command(short_help="Show a service: addresses, policies, backends, counters.")
@click.argument("service")
@options.output
@options.pin_dir
def show(service: str, output: str, pin_dir: Path) -> None:
    """Show SERVICE: its addresses, policies, allowed sources, topology hints, backends, counters.

    SERVICE is NAME or NAMESPACE/NAME, optionally with :PORT, the name of a port. Every port that
    matches is shown.

    \b
    lbctl service show default/web
    lbctl service show kube-dns:dns-tcp -o yaml
    """
    with open_instance(pin_dir) as instance:
        hints, troubles = status.read_hints(pin_dir), status.read_troubles(pin_dir)
        rows = services.show(instance, service, hints, troubles, instance.flow_tables)
    if write_data(rows, output):
        return
    click.echo("\n\n".join(describe(row, wide=output == "wide") for row in rows))


def describe(row: ServiceRow, *, wide: bool = False) -> str:
    """A service port as a paragraph: one fact per line, then a line per backend."""
    counters = row.counters
    lines = [
        f"{row.name.label}  {row.name.protocol}, IP{row.name.family}"
        + (f", id {row.id}" if wide else ""),
        *(f"  address   {_address(address)}" for address in row.addresses),
        *([] if row.addresses else ["  address   none"]),
        *(f"  warning   {text}" for text in row.troubles),
        f"  policy    {_policy(row)}",
        f"  choice    {_choice(row)}",
        *_conditions(row),
        f"  hints     {_hints(row)}",
        f"  traffic   {counters.connections} connections, {counters.live} of them open",
        f"            {counters.packets_in} packets, {size(counters.bytes_in)} bytes to backends",
        f"            {counters.packets_out} packets, {size(counters.bytes_out)} bytes to clients",
    ]
    if not row.backends:
        what = "dropped" if row.without_backends == "drop" else "refused"
        return "\n".join([*lines, f"  backends  none: traffic is {what}"])
    for number, backend in enumerate(row.backends):
        here = "this node" if backend.here else "another node"
        text = f"{backend.endpoint}  {here}, {_share(backend, row)}"
        if not backend.serving:
            text += ", leaving"
        if wide:
            text += f", in {'+'.join(backend.sets) or 'no set'}"
            text += f", id {backend.id} generation {backend.generation}"
        lines.append(f"  {'backends' if number == 0 else '':<8}  {text}")
    return "\n".join(lines)


def _address(address: AddressRow) -> str:
    guarded = ", only for its source ranges" if address.source_ranges else ""
    return f"{address.endpoint}  {', '.join(address.kinds)}{guarded}"


def _policy(row: ServiceRow) -> str:
    text = f"internal {row.internal_policy}, external {row.external_policy}"
    if row.forwarding == "dsr":
        text += ", answered straight back (DSR)"
    if row.cluster and not row.local and LOCAL in (row.internal_policy, row.external_policy):
        what = "dropped" if row.without_local == "drop" else "refused"
        text += f"; no backend here: traffic under Local is {what}"
    return text


def _choice(row: ServiceRow) -> str:
    """How a backend is chosen, and until when its flows are kept."""
    parts = [row.algorithm]
    if row.near:
        parts.append(f"{row.near} near ones until {row.spill_over:g} times as busy as the others")
    if row.slow_start_seconds:
        parts.append(f"new ones get their share within {row.slow_start_seconds} s")
    if row.flows_leave_seconds is not None:
        parts.append(f"flows end {row.flows_leave_seconds} s after their backend has left")
    return ", ".join(parts)


def _share(backend: BackendRow, row: ServiceRow) -> str:
    """What it is to get of what is new, and what it has."""
    parts = [f"weight {backend.weight}"]
    if "cluster" in backend.shares:
        parts.append(f"{backend.shares['cluster']:.1%} of new flows")
    if "local" in backend.shares and LOCAL in (row.internal_policy, row.external_policy):
        parts.append(f"{backend.shares['local']:.1%} under Local")
    return ", ".join([*parts, f"{backend.flows} open"])


def _conditions(row: ServiceRow) -> list[str]:
    lines = []
    if row.affinity_seconds:
        what = f"clients stay with their backend for {row.affinity_seconds} s"
        lines.append(f"  affinity  {what}")
    if row.source_ranges:
        lines.append(f"  sources   {', '.join(row.source_ranges)}")
    return lines


def _hints(row: ServiceRow) -> str:
    if row.hints is None:
        return "unknown: no agent runs that could say"
    return "none on its endpoints" if row.hints == NO_HINTS else row.hints


def _addresses(row: ServiceRow) -> str:
    return ",".join(address.endpoint for address in row.addresses)


COLUMNS: list[Column[ServiceRow]] = [
    Column("NAMESPACE", lambda row: row.name.namespace),
    Column("SERVICE", lambda row: row.name.label.partition("/")[2] or row.name.label),
    Column("PROTO", lambda row: row.name.protocol),
    Column("ADDRESSES", _addresses),
    Column("BACKENDS", lambda row: str(row.cluster), number=True),
    Column("LOCAL", lambda row: str(row.local), number=True),
    Column("INTERNAL", lambda row: row.internal_policy, wide=True),
    Column("EXTERNAL", lambda row: row.external_policy, wide=True),
    Column("FORWARDING", lambda row: row.forwarding, wide=True),
    Column("ALGORITHM", lambda row: row.algorithm, wide=True),
    Column("AFFINITY", lambda row: f"{row.affinity_seconds}s", wide=True, number=True),
    Column("OPEN", lambda row: count(row.counters.live), number=True),
    Column("CONNS", lambda row: count(row.counters.connections), number=True),
    Column(
        "PACKETS",
        lambda row: count(row.counters.packets_in + row.counters.packets_out),
        number=True,
    ),
    Column("BYTES", lambda row: size(row.counters.bytes_in + row.counters.bytes_out), number=True),
    Column("ID", lambda row: str(row.id), wide=True, number=True),
]
