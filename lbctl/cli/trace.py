"""`lbctl trace`: where a packet would go, asked of the real programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import objects, options
from lbctl.cli.output import Column, write, write_data
from lbctl.cli.root import require_root
from lbctl.errors import LbError, UsageError
from lbctl.printing import print_rich

if TYPE_CHECKING:
    from lbctl.trace.asking import Traced
    from lbctl.trace.flows import Flow
    from lbctl.trace.tracednode import TracedNode

DEFAULT_SAMPLES = 100


@click.command()
@click.argument("source", required=False)
@click.argument("destination", required=False, metavar="[DESTINATION:PORT[/PROTOCOL]]")
@click.option(
    "--flows",
    "flows_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ask about many flows: a JSON list of objects with name, source_ip, dest_ip, dest_port, "
    "protocol, and optionally arrives (pod, uplink or node).",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=DEFAULT_SAMPLES,
    show_default=True,
    metavar="N",
    help="Packets to try per flow. A backend that none of them was sent to is not listed.",
)
@objects.manifests
@options.output
@options.pin_dir
def command(
    source: str | None,
    destination: str | None,
    flows_file: Path | None,
    samples: int,
    manifests: Path | None,
    node_name: str,
    config: Path | None,
    local_ips: tuple[str, ...],
    service_cidrs: tuple[str, ...],
    output: str,
    pin_dir: Path,
) -> None:
    """Ask the programs where a packet would go, and why.

    \b
      lbctl trace 10.0.0.2 172.30.0.41:80/tcp
      lbctl trace fd00::2 [fd00:1::41]:53/udp -o json
      lbctl trace --manifests objects.yaml --node-name worker-1 --flows flows.json -o json

    Runs the first packet of a connection from SOURCE through the programs in the kernel, with the
    maps of this node's instance. Nothing is sent, counted or remembered. With --manifests, it fills
    temporary maps from Kubernetes objects, and needs no instance.
    """
    flows = _flows(source, destination, flows_file)
    if manifests is None:
        _only_with_manifests(node_name, config, local_ips, service_cidrs)
        node = _live(pin_dir)
    else:
        node = _private(manifests, node_name, config, local_ips, service_cidrs)
    with node:
        traced = node.ask(flows, samples)
    _remark(traced)
    _print(traced, samples, output)


def _flows(source: str | None, destination: str | None, flows_file: Path | None) -> list[Flow]:
    from lbctl.trace.flows import parse_flow, read_flows

    if flows_file is not None:
        if source is not None:
            raise UsageError(
                "flows are given twice: as arguments and with --flows", "Use one of the two."
            )
        return read_flows(flows_file)
    if source is None or destination is None:
        raise UsageError(
            "there is nothing to trace",
            "Give a source and a destination, `lbctl trace 10.0.0.2 172.30.0.41:80/tcp`, "
            "or --flows FILE.",
        )
    return [parse_flow(source, destination)]


def _only_with_manifests(
    node_name: str, config: Path | None, local_ips: tuple[str, ...], cidrs: tuple[str, ...]
) -> None:
    given = {
        "--node-name": node_name,
        "--config": config,
        "--local-ip": local_ips,
        "--service-cidr": cidrs,
    }
    for name, value in given.items():
        if value:
            raise UsageError(
                f"{name} has no effect without --manifests",
                "Without --manifests, the node's own maps are used, which already hold this.",
            )


def _live(pin_dir: Path) -> TracedNode:
    from lbctl.inspect.opened import open_instance
    from lbctl.trace.live import LiveNode
    from lbctl.trace.programs import trace_bundle

    instance = open_instance(pin_dir)
    _require_root()
    return LiveNode(instance, trace_bundle())


def _private(
    manifests: Path,
    node_name: str,
    config: Path | None,
    local_ips: tuple[str, ...],
    service_cidrs: tuple[str, ...],
) -> TracedNode:
    from lbctl.sources.documents import load_manifests
    from lbctl.trace import situation
    from lbctl.trace.private import PrivateNode, sizes_for
    from lbctl.trace.programs import trace_bundle

    known = load_manifests(manifests)
    objects.say_all(known.remarks)
    node = situation.node(known.nodes, node_name, config, local_ips, service_cidrs, objects.say)
    services = list(known.services.values())
    _require_root()
    made = PrivateNode(trace_bundle(), sizes_for(services, node), node)
    try:
        with objects.log_as_notes():
            made.apply(services, node)
    except LbError:
        made.close()
        raise
    return made


def _require_root() -> None:
    require_root("trace", "loads programs into the kernel", "It sends nothing and changes nothing.")


def _remark(traced: list[Traced]) -> None:
    """What the answers do not show."""
    if any(t.flow.arrives == "node" for t in traced):
        objects.say(
            "connections of the node itself are translated at its sockets, by programs that the "
            "kernel cannot test-run: a packet was tried instead, for which the choice is the same "
            "(a process sees ECONNREFUSED for reject, EHOSTUNREACH for drop)"
        )
    for t in traced:
        if not t.agreed:
            objects.say(
                f"flow {t.answer.name}: samples disagree because the maps are changing; try again"
            )


def _print(traced: list[Traced], samples: int, output: str) -> None:
    if write_data([t.answer for t in traced], output):
        return
    if not traced:
        objects.say("no flows were given")
        return
    if len(traced) == 1:
        _print_one(traced[0], samples)
        return
    write(traced, COLUMNS, output)
    from lbctl.datapath.reasons import sentence

    click.echo()
    for reason in dict.fromkeys(t.answer.reason for t in traced):
        click.echo(f"{reason}: {sentence(reason)}")


def _print_one(traced: Traced, samples: int) -> None:
    """One flow as a list of facts."""
    from rich.table import Table

    from lbctl.datapath.reasons import sentence

    answer = traced.answer
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_row("verdict", answer.verdict)
    if traced.service:
        table.add_row("service", traced.service)
    for number, backend in enumerate(answer.backends):
        chance = answer.probabilities.get(backend)
        said = f"{backend}  {chance:.1%}" if chance is not None else backend
        table.add_row("" if number else "backends", said)
    for backend, chance in answer.probabilities.items():
        if backend not in answer.backends:
            table.add_row("", f"{backend}  {chance:.1%}, not seen in any sample")
    if answer.verdict == "forward":
        table.add_row("masquerade", _masquerade(traced))
    table.add_row("reason", answer.reason)
    table.add_row("", sentence(answer.reason))
    print_rich(table)
    if len(answer.backends) > 1:
        click.echo(f"({samples} packets were tried)")


def _masquerade(traced: Traced) -> str:
    """Whether the backend sees another source than the client's, in words."""
    if traced.answer.verdict != "forward":
        return ""
    kind = traced.answer.masquerade
    if kind == "mixed":
        return "depends on the backend"
    text = "yes" if kind else "no"
    return f"{text}, goes to the backend's node whole (DSR)" if traced.dsr else text


COLUMNS = (
    Column["Traced"]("FLOW", lambda t: t.answer.name),
    Column["Traced"]("VERDICT", lambda t: t.answer.verdict),
    Column["Traced"]("BACKENDS", lambda t: " ".join(t.answer.backends)),
    Column["Traced"]("MASQUERADE", _masquerade),
    Column["Traced"]("REASON", lambda t: t.answer.reason),
    Column["Traced"]("SERVICE", lambda t: t.service, wide=True),
)
