"""`lbctl drain --simulate`: what the loss of a node would do to services and their flows."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl.cli import objects, options
from lbctl.cli.doctor import FOUND_WANTING
from lbctl.cli.output import Column, write, write_data
from lbctl.errors import LbError, NotFound, UsageError

if TYPE_CHECKING:
    from lbctl.verify.drain import Changes, Drained, DrainedPort, Place, Verdicts, View
    from lbctl.verify.objects import Known


@click.command()
@click.argument("node")
@click.option("--simulate", is_flag=True, help="Required, to make clear that nothing is drained.")
@options.output
@objects.question
def command(node: str, simulate: bool, output: str, pin_dir: Path, **asked: Any) -> None:
    """Say what would happen if NODE were drained: which services would have no endpoint left, which
    would lose their nearby endpoints, which flows of this node would end.

    Nothing is changed. Run as root, it asks the real programs, with temporary maps, what would
    happen to new connections; otherwise it computes that. Topology hints are used as they are now,
    although their controller would rewrite them in time.

    Exits with code 5 if a service would be left without any endpoint.

    \b
    lbctl drain worker-3 --simulate
    lbctl drain worker-3 --simulate --manifests objects.yaml --node-name worker-1 -o json
    """
    if not simulate:
        raise UsageError(
            "drain only simulates", "Add --simulate. To drain a node, use `kubectl drain`."
        )
    from lbctl.verify import drain
    from lbctl.verify.objects import Question, know

    with objects.log_as_notes():
        known = know(Question(pin_dir=pin_dir, **asked), objects.say)
        objects.say_all(known.problems)
        changes = drain.affected(known.services, node)
        _check(node, known)
        views = [drain.View(f"this node ({known.node.name})", known.node)]
        views += drain.zones(known.zones, node)
        flows = _flows(known, pin_dir)
        verdicts, who = _verdicts(changes, views[0])
        ports = tuple(drain.simulate(changes, node, views, verdicts, flows))
    total = None if flows is None else sum(port.flows or 0 for port in ports)
    found = drain.Drained(node, known.node.name, who, ports, total)
    if not write_data(found, output):
        _print(found, output)
    if any(port.last for port in ports):
        sys.exit(FOUND_WANTING)


def _check(node: str, known: Known) -> None:
    """Draining a misspelt node would seem to do no harm."""
    nodes = {name for name, _ in known.zones} | {
        endpoint.node
        for found in known.services.values()
        for part in found.slices
        for endpoint in part.endpoints
    }
    if node not in nodes:
        shown = ", ".join(sorted(filter(None, nodes))[:5])
        raise NotFound(
            f"there is no node {node!r}, and no endpoint on one", f"Known nodes: {shown}."
        )


def _flows(known: Known, pin_dir: Path) -> Mapping[Place, int] | None:
    """Of the node that this runs on, if it is about that."""
    from lbctl.inspect import load
    from lbctl.inspect.opened import open_instance

    if not known.agents:
        return None
    try:
        with open_instance(pin_dir) as instance:
            return load.count_flows(instance)
    except LbError as error:
        objects.say(f"flows are unknown: {error.message}")
        return None


def _verdicts(changes: Changes, view: View) -> tuple[Verdicts, str]:
    from lbctl.verify import drain, drainprograms

    if os.geteuid() == 0:
        return drainprograms.verdicts(changes, view.node), "programs"
    return drain.resolvers_verdicts(changes, view), "resolver"


def _print(found: Drained, output: str) -> None:
    write(found.ports, COLUMNS, output, empty=f"no usable endpoint is on {found.node}")
    for port in found.ports:
        for effect in port.effects:
            click.echo(f"{port.name.label} ({port.name.protocol}, IP{port.name.family}): {effect}")
    last = sum(port.last for port in found.ports)
    flows = "" if found.flows is None else f", {found.flows} flows of {found.view} would end"
    click.echo(
        f"{len(found.ports)} service ports have endpoints on {found.node}, {last} of them only "
        f"there{flows} (according to the {found.asked})",
        err=True,
    )


def _changed(item: DrainedPort) -> str:
    changed = [
        f"{origin} {before}→{after}"
        for origin, (before, after) in item.verdicts.items()
        if before != after
    ]
    return ", ".join(changed) or "-"


COLUMNS: list[Column[DrainedPort]] = [
    Column("SERVICE", lambda item: item.name.label),
    Column("PROTO", lambda item: item.name.protocol),
    Column("FAMILY", lambda item: item.name.family),
    Column("ON NODE", lambda item: str(item.endpoints), number=True),
    Column("LEFT", lambda item: str(item.left), number=True),
    Column("FLOWS", lambda item: "-" if item.flows is None else str(item.flows), number=True),
    Column("NEW CONNECTIONS", _changed),
]
