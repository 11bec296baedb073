"""`lbctl status`: is this instance ready, how full are its tables, what happens to packets."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lbctl.cli import options
from lbctl.cli.doctor import FOUND_WANTING
from lbctl.cli.output import Column, count, size, write, write_data
from lbctl.inspect import instance as inspected
from lbctl.inspect.instance import InstanceStatus, MapUse
from lbctl.inspect.opened import open_instance
from lbctl.status import SourceState


@click.command()
@click.option("--check", is_flag=True, help="Exit with code 5 unless the instance is ready.")
@options.output
@options.pin_dir
def command(check: bool, output: str, pin_dir: Path) -> None:
    """Show the state of an instance.

    It is ready when its agent runs, has read and applied every object, all uplinks and pod
    interfaces have programs, and nothing has been wrong for longer than allowed
    (docs/operations.md). Without an agent, what the last one reported is shown; traffic is still
    translated as it left it.

    \b
    lbctl status -o json | jq .ready
    lbctl status --check >/dev/null && echo ready
    """
    with open_instance(pin_dir) as instance:
        found = inspected.read(instance)
    if not write_data(found, output):
        click.echo("\n".join(_summary(found)))
        shown = [item for item in found.maps if output == "wide" or item.entries is not None]
        click.echo()
        write(shown, COLUMNS, output)
        for warning in found.warnings:
            click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    if check and not found.ready:
        sys.exit(FOUND_WANTING)


def _summary(found: InstanceStatus) -> list[str]:
    lines = [
        f"ready       {'yes' if found.ready else 'no'}",
        f"agent       {f'process {found.agent}' if found.agent else 'none'}"
        + (f", lbctl {found.version}" if found.version else "")
        + (f", node {found.node}" if found.node else ""),
        f"services    {found.services} ({found.service_ports} ports), {found.endpoints} endpoints",
        f"interfaces  {found.interfaces} with programs",
    ]
    if found.socket_lb:
        closed = f"; {found.sockets_closed} closed, endpoint gone" if found.sockets_closed else ""
        lines.append(f"sockets     {SOCKETS.get(found.socket_lb, found.socket_lb)}{closed}")
    lines += _drivers(found)
    if found.fast_path.wanted or found.passed:
        lines += _fast_path(found)
    if found.thread_restarts:
        lines.append(f"threads     {found.thread_restarts} replaced that had ended or were stuck")
    if found.audit.corrections:
        counts = (f"{kind} {number}" for kind, number in found.audit.corrections.items())
        lines.append(f"corrected   {', '.join(counts)}")
        lines += [f"            {text}" for text in found.audit.lately[-_CORRECTIONS:]]
    memory = sum(item.bytes for item in found.maps)
    lines.append(f"memory      {size(memory)} of the kernel's, in maps")
    if found.last_apply:
        took = f"{found.last_apply_seconds * 1000:.1f} ms"
        lines.append(f"last apply  {found.last_apply}, took {took}")
    if found.source.kind:
        lines += _source(found.source)
    if found.taking_over:
        lines.append(
            "take-over   kube-proxy's rules are still here; its connections are left alone"
        )
    seen = {name: number for name, number in found.reasons.items() if number}
    width = max((len(name) for name in seen), default=0)
    for i, (name, number) in enumerate(seen.items()):
        lines.append(f"{'' if i else 'packets':<10}  {name:<{width}}  {number}")
    return lines


def _source(source: SourceState) -> list[str]:
    state = "connected" if source.connected else "not connected"
    problems = (text for text in (source.last_error, *source.problems) if text)
    return [f"source      {source.kind}, {state}", *(f"            {text}" for text in problems)]


DRIVERS = {
    "sends": "{use}",
    "receives": "{use}, for what comes in there alone",
    "testing": "is being tested",
    "tc": "left to TC",
}


def _drivers(found: InstanceStatus) -> list[str]:
    lines = []
    use = "ready, not in use now" if found.xdp != "on" and found.xdp_others else "in use"
    for i, driver in enumerate(found.drivers):
        why = f": {driver.why}" if driver.why else ""
        state = DRIVERS.get(driver.state, driver.state).format(use=use)
        lines.append(f"{'' if i else 'xdp':<10}  {driver.name} {state}{why}")
    past = "sent on past" if found.xdp == "on" else "left to TC for"
    return [*lines, *(f"            {past} {text}" for text in found.xdp_others)]


def _fast_path(found: InstanceStatus) -> list[str]:
    said = found.fast_path
    state = "open" if said.open and found.agent else "closed" if said.wanted else "off"
    return [
        f"fast path   {state}; {found.passed} packets bypassed the stack",
        *(f"            {text}" for text in said.obstacles),
    ]


_CORRECTIONS = 3  # of the last ones, in words
SOCKETS = {
    "off": "not served (--socket-lb off)",
    "host": "those of this node's own processes",
    "all": "those of this node's own processes and of its pods",
}


def _full(item: MapUse) -> str:
    return "" if item.entries is None else f"{item.entries / item.most:.0%}"


COLUMNS: list[Column[MapUse]] = [
    Column("MAP", lambda item: item.name),
    Column("KIND", lambda item: item.kind, wide=True),
    Column(
        "ENTRIES", lambda item: "-" if item.entries is None else count(item.entries), number=True
    ),
    Column("ROOM", lambda item: count(item.capacity), number=True),
    Column("AT MOST", lambda item: count(item.most), number=True),
    Column("FULL", _full, number=True),
    Column("MEMORY", lambda item: size(item.bytes), number=True),
    Column("FOR MORE", lambda item: item.flag, wide=True),
]
