"""`lbctl explain`: which endpoints of a service are used from here, which are not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl.cli import objects, options
from lbctl.cli.output import Column, table, write_data

if TYPE_CHECKING:
    from lbctl.verify.explain import ExplainedEndpoint, ExplainedPort, Explanation, Group, NodeLoss

_FROM = {
    "pod": "a pod of this node",
    "node": "the node itself",
    "outside": "outside this node",
}


@click.command()
@click.argument("service")
@click.option(
    "--from",
    "source",
    default="pod",
    show_default=True,
    metavar="WHOM",
    help="Whose traffic: `pod` (any pod of this node), `node` (the node itself), `outside` "
    "(anybody else), an address, a pod's NAMESPACE/NAME, or a node's name.",
)
@options.output
@objects.question
def command(service: str, source: str, output: str, pin_dir: Path, **asked: Any) -> None:
    """Say which endpoints of SERVICE are used from here, which are not and why, and what would
    change that.

    SERVICE is NAME or NAMESPACE/NAME, optionally with :PORT, the name of a port. The agent's own
    code gives the answer, for the objects as they are now and for this node. --manifests,
    --kubeconfig and --node-name choose other objects and another node.

    \b
    lbctl explain default/web --from outside
    lbctl explain web --from apps/client-7d5f
    lbctl explain web:http --from 10.1.0.7 -o json
    lbctl explain web --manifests objects.yaml --node-name worker-2
    """
    from lbctl.verify import answers, origins
    from lbctl.verify.objects import Question, find, know

    with objects.log_as_notes():
        known = know(Question(pin_dir=pin_dir, **asked), objects.say)
        objects.say_all(known.problems)
        found, port = find(known.services, service)
        origin, note = origins.origin(source, known)
        explained = answers.explained(found, known, origin, port, pin_dir, [note] if note else [])
    if not write_data(explained, output):
        click.echo("\n\n".join(_paragraphs(explained, wide=output == "wide")))


def _paragraphs(explained: Explanation, *, wide: bool) -> Iterator[str]:
    head = [f"{explained.service}, from {_FROM[explained.origin]} ({explained.node})"]
    head += [f"  {note}" for note in explained.notes]
    if not explained.ports and not explained.notes:
        head.append("  none of its ports is served here")
    yield "\n".join(head)
    for port in explained.ports:
        yield "\n".join(_port(port, wide=wide))


def _port(port: ExplainedPort, *, wide: bool) -> Iterator[str]:
    yield click.style(f"{port.name.label}  {port.name.protocol}, IP{port.name.family}", bold=True)
    for text in port.warnings:
        yield f"  warning: {text}"
    if port.source_ranges:
        yield f"  Its load-balancer addresses are only open to {', '.join(port.source_ranges)}."
    if port.affinity_seconds:
        yield f"  A client stays with its endpoint for {port.affinity_seconds} s."
    if not port.groups:
        yield "  It has no address that traffic from there can use."
    for group in port.groups:
        yield from _group(group, wide=wide)


def _group(group: Group, *, wide: bool) -> Iterator[str]:
    used = sum(endpoint.used for endpoint in group.endpoints)
    called = [f"{a.endpoint} ({', '.join(a.kinds)})" for a in group.addresses]
    shown = called if wide else [*called[:3], *([f"{len(called) - 3} more"] if called[3:] else [])]
    which = "endpoints of this node only" if group.policy == "Local" else "any endpoint"
    yield f"  {', '.join(shown)}: policy {group.policy}, {which}."
    yield f"  {_outcome(group, used)}"
    columns = [*COLUMNS[:2], POD, *COLUMNS[2:]] if any(e.pod for e in group.endpoints) else COLUMNS
    yield from (f"    {line}" for line in table(group.endpoints, columns))
    yield from (f"  {sentence}" for sentence in _losses(group, wide=wide))
    if group.programmed is False:
        yield "  The kernel has something else: `lbctl verify` says what."


def _outcome(group: Group, used: int) -> str:
    total = len(group.endpoints)
    if group.verdict == "forward":
        return f"{used} of {total} endpoints {'is' if used == 1 else 'are'} used:"
    what = "dropped, so that another node is tried" if group.verdict == "drop" else "refused"
    return f"None of {total} endpoints is used, so connections are {what}{':' if total else '.'}"


def _losses(group: Group, *, wide: bool) -> Iterator[str]:
    """What each node is worth: those whose loss leaves nothing first."""
    ends = [loss for loss in group.losses if loss.verdict != "forward"]
    for loss in ends:
        what = "dropped" if loss.verdict == "drop" else "refused"
        yield f"If node {loss.node} went, none would be left, and connections would be {what}."
    others = [loss for loss in group.losses if loss.verdict == "forward"]
    for loss in others if wide else others[:3]:
        yield _loss(loss)
    more = group.nodes - len(group.losses) + (0 if wide else max(0, len(others) - 3))
    if more:
        yield f"There are {more} more nodes with endpoints that are used."


def _loss(loss: NodeLoss) -> str:
    number = "1 endpoint" if loss.left == 1 else f"{loss.left} endpoints"
    return f"Without node {loss.node} (which has {loss.endpoints} of them), {number} would be used."


def _why(item: ExplainedEndpoint) -> str:
    return f"{item.why}; if it were ready, {item.if_ready}" if item.if_ready else item.why


COLUMNS: list[Column[ExplainedEndpoint]] = [
    Column("", lambda item: "used" if item.used else "not used"),
    Column("", lambda item: item.endpoint),
    Column("", lambda item: "this node" if item.here else item.node or "no node"),
    Column("", _why),
]
POD: Column[ExplainedEndpoint] = Column("", lambda item: item.pod)
