"""`lbctl lab`: build, show, enter and remove a cluster of network namespaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import click

from lbctl.cli import options
from lbctl.cli.options import Decorator
from lbctl.cli.output import Column, write, write_data
from lbctl.cli.root import require_root
from lbctl.lab import agents, teardown
from lbctl.lab.cluster import Lab
from lbctl.lab.overview import LabStatus, NodeStatus, status_of
from lbctl.lab.state import AgentOptions, names_of_labs
from lbctl.lab.topology import Cni, check_name

DEFAULTS = AgentOptions()


def _room(flag: str, default: int) -> Decorator:
    """How large the agents' tables may grow; they check the number."""
    return click.option(
        flag, type=int, default=default, show_default=True, help=f"The agents' {flag}."
    )


lab_name: Decorator = click.option(
    "--name", "--lab", "name", default="lab", show_default=True, help="Name of the lab."
)


@click.group()
def command() -> None:
    """Build a cluster of network namespaces on this machine, to try things on.

    It has nodes on a network, pods behind veths, a client outside the cluster, and an agent on each
    node. It does not touch the machine's own interfaces, routes or firewall. Needs root.

    \b
      lbctl lab up --manifests examples/
      lbctl lab exec pod1 -- curl -s http://10.96.0.80/
      lbctl service list --pin-dir /sys/fs/bpf/lbctl-lab/lab/node1
      lbctl lab down
    """


@command.command()
@lab_name
@click.option("--nodes", type=int, default=2, show_default=True, help="Number of nodes.")
@click.option("--pods", type=int, default=3, show_default=True, help="Number of pods on each node.")
@click.option(
    "--cni",
    type=click.Choice(["route", "bridge"]),
    default="route",
    show_default=True,
    help="How pods are connected: a route to each veth, or one Linux bridge per node.",
)
@click.option("--agent/--no-agent", default=True, help="Run `lbctl agent` on every node.")
@click.option(
    "--manifests",
    type=click.Path(exists=True, path_type=Path),
    metavar="PATH",
    help="Kubernetes objects (a file or directory) to serve in the lab.",
)
@_room("--services", DEFAULTS.services)
@_room("--endpoints", DEFAULTS.endpoints)
@_room("--flows", DEFAULTS.flows)
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

    To change objects while it runs, change the files in /run/lbctl/lab/NAME/manifests: the agents
    follow them.
    """
    require_root("a lab", "makes network namespaces")
    sizes = AgentOptions(services=services, endpoints=endpoints, flows=flows)
    lab = Lab.up(
        name, nodes=nodes, pods=pods, cni=cni, agent=agent, manifests=manifests, options=sizes
    )
    flag = "" if name == "lab" else f" --lab {name}"
    click.echo(
        f"Lab {name!r} is up (nodes: {nodes}, pods: {len(lab.pods)}). "
        f"Try: lbctl lab status{flag}; lbctl lab exec{flag} pod1 -- ip address",
        err=True,
    )


@command.command()
@lab_name
def down(name: str) -> None:
    """Remove a lab.

    Its processes, namespaces, maps, cgroups and files go, also those that a failed or killed `up`
    left behind. If there is no such lab, that is not an error.
    """
    require_root("a lab", "makes network namespaces")
    if not teardown.remove(check_name(name)):
        others = ", ".join(names_of_labs())
        there_is = f" Existing labs: {others}." if others else ""
        click.echo(f"There is no lab {name!r}.{there_is}", err=True)


@command.command()
@lab_name
@options.output
def status(name: str, output: str) -> None:
    """Show the members of a lab.

    Lists nodes, pods and the outside client, with addresses, namespaces, directories and agents.
    """
    require_root("a lab", "makes network namespaces")
    found = status_of(Lab.load(name))
    if not write_data(found, output):
        write(_rows(found), COLUMNS, output)


@command.command()
@lab_name
@click.argument("member")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def exec(name: str, member: str, program: tuple[str, ...]) -> None:
    """Run a command in a node, a pod or `outside`.

    It runs in that member's network namespace and cgroup.

    \b
      lbctl lab exec pod1 -- curl -s http://10.96.0.80/
      lbctl lab exec node1 -- ip route

    Input, output and exit code are those of the command.
    """
    require_root("a lab", "makes network namespaces")
    argv = Lab.load(name).command(member, program)
    # Becomes the command: nothing stays in between to get signals or the terminal wrong.
    os.execvpe(argv[0], argv, agents.environment())


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
