"""`lbctl lab`: build, show, enter and remove a cluster of network namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import click

from lbctl.cli import options
from lbctl.cli.options import Decorator
from lbctl.cli.output import Column, write, write_data
from lbctl.errors import LbError
from lbctl.lab import agents, teardown
from lbctl.lab.cluster import Lab
from lbctl.lab.overview import LabStatus, NodeStatus, status_of
from lbctl.lab.state import AgentOptions, names_of_labs
from lbctl.lab.topology import Cni, check_name

DEFAULTS = AgentOptions()

lab_name: Decorator = click.option(
    "--name", "--lab", "name", default="lab", show_default=True, help="Which lab."
)


@click.group()
def command() -> None:
    """A cluster of network namespaces on this machine, to try things on.

    \b
    Nodes joined by a network, pods behind veths, a client outside; per node an agent. Nothing of it
    touches the machine's own interfaces, routes or firewall. Needs root.

    \b
      lbctl lab up --manifests examples/
      lbctl lab exec pod1 -- curl -s http://10.96.0.80/
      lbctl service list --pin-dir /sys/fs/bpf/lbctl-lab/lab/node1
      lbctl lab down
    """


@command.command()
@lab_name
@click.option("--nodes", type=int, default=2, show_default=True, help="How many nodes.")
@click.option("--pods", type=int, default=3, show_default=True, help="How many pods on each node.")
@click.option(
    "--cni",
    type=click.Choice(["route", "bridge"]),
    default="route",
    show_default=True,
    help="How pods are connected: each by a route to its veth, or all by a Linux bridge.",
)
@click.option("--agent/--no-agent", default=True, help="Run `lbctl agent` on every node.")
@click.option(
    "--manifests",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Kubernetes objects (a file or directory) to copy into the lab.",
)
@click.option("--services", type=int, default=DEFAULTS.services, show_default=True, help="Room.")
@click.option("--endpoints", type=int, default=DEFAULTS.endpoints, show_default=True, help="Room.")
@click.option("--flows", type=int, default=DEFAULTS.flows, show_default=True, help="Room.")
def up(
    name: str,
    nodes: int,
    pods: int,
    cni: Cni,
    agent: bool,
    manifests: Path | None,
    services: int,
    endpoints: int,
    flows: int,
) -> None:
    """Build a lab and start its agents.

    Objects can be changed while it runs: the agents watch the directory that `lab status` names.
    """
    require_root()
    sizes = AgentOptions(services=services, endpoints=endpoints, flows=flows)
    lab = Lab.up(
        name, nodes=nodes, pods=pods, cni=cni, agent=agent, manifests=manifests, options=sizes
    )
    flag = "" if name == "lab" else f" --lab {name}"
    click.echo(
        f"Lab {name!r} is up: {nodes} nodes, {len(lab.pods)} pods. "
        f"Look around: lbctl lab status{flag}; lbctl lab exec{flag} pod1 -- ip address",
        err=True,
    )


@command.command()
@lab_name
def down(name: str) -> None:
    """Remove every trace of a lab: processes, namespaces, maps, cgroups, files.

    Also ends what a failed or killed `up` left behind. Removing what is not there is no error.
    """
    require_root()
    if not teardown.remove(check_name(name)):
        others = ", ".join(names_of_labs())
        there_is = f" There is: {others}." if others else ""
        click.echo(f"There was no lab {name!r}.{there_is}", err=True)


@command.command()
@lab_name
@options.output
def status(name: str, output: str) -> None:
    """Show a lab's nodes, pods and outside client: addresses, namespaces, directories, agents."""
    found = status_of(Lab.load(name))
    if not write_data(found, output):
        write(_rows(found), COLUMNS, output)


@command.command()
@lab_name
@click.argument("member")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def exec(name: str, member: str, program: tuple[str, ...]) -> None:
    """Run a command in a node, a pod or the outside client: its namespace and its cgroup.

    \b
      lbctl lab exec pod1 -- curl -s http://10.96.0.80/
      lbctl lab exec node1 -- ip route

    Input, output and exit code are the command's own.
    """
    require_root()
    argv = Lab.load(name).command(member, program)
    # Becomes the command: nothing stays in between to get signals or the terminal wrong.
    os.execvpe(argv[0], argv, agents.environment())


def require_root() -> None:
    """LbError unless this process may make namespaces."""
    if os.geteuid() != 0:
        raise LbError("a lab needs root: it makes network namespaces", "Run it with sudo.")


class _Row(NamedTuple):
    """A line of `lab status`."""

    name: str
    addresses: tuple[str, ...]
    node: str
    namespace: str
    agent: str = ""
    pin_dir: str = ""
    cgroup: str = ""


COLUMNS = (
    Column[_Row]("NAME", lambda row: row.name),
    Column[_Row]("ADDRESSES", lambda row: " ".join(row.addresses)),
    Column[_Row]("NODE", lambda row: row.node),
    Column[_Row]("NAMESPACE", lambda row: row.namespace),
    Column[_Row]("AGENT", lambda row: row.agent),
    Column[_Row]("PIN DIRECTORY", lambda row: row.pin_dir),
    Column[_Row]("CGROUP", lambda row: row.cgroup, wide=True),
)


def _rows(found: LabStatus) -> list[_Row]:
    return [
        *(
            _Row(
                name=node.name,
                addresses=node.addresses,
                node="",
                namespace=node.namespace,
                agent=_agent(node),
                pin_dir=node.pin_dir,
                cgroup=node.cgroup,
            )
            for node in found.nodes
        ),
        *(
            _Row(pod.name, pod.addresses, pod.node, pod.namespace, cgroup=pod.cgroup)
            for pod in found.pods
        ),
        _Row(
            found.outside.name,
            found.outside.addresses,
            "",
            found.outside.namespace,
            cgroup=found.outside.cgroup,
        ),
    ]


def _agent(node: NodeStatus) -> str:
    if node.agent is None:
        return "none"
    return f"pid {node.agent.pid}" if node.agent.running else "not running"
