"""`lbctl demo`: watch it work."""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType

import click

from lbctl.cli.root import require_root
from lbctl.demo import steps
from lbctl.demo.outcome import Outcome, show_summary
from lbctl.demo.services import CLIENT, examples_directory
from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Cni

TERMINATED = 128 + signal.SIGTERM


@click.command()
@click.option("--keep", is_flag=True, help="Keep the lab running, and print commands to try on it.")
@click.option(
    "--cni",
    type=click.Choice(["route", "bridge"]),
    default="route",
    show_default=True,
    help="How the lab's pods are connected.",
)
@click.option("--name", default="demo", show_default=True, help="Name of the lab.")
def command(keep: bool, cni: Cni, name: str) -> None:
    """Show real traffic through a small lab while things change, and count what is lost.

    Builds two nodes with three pods each from network namespaces, sends requests to an HTTP and a
    DNS service over IPv4 and IPv6, changes their endpoints and kills the agents meanwhile, counts
    lost requests, and removes the lab. Takes about 20 seconds and needs root; the machine's own
    network is not touched.

    Exits with code 0 if nothing was lost, else 1.
    """
    require_root("the demo", "makes network namespaces")
    # As with Ctrl-C: unwind, and thereby clean up.
    signal.signal(signal.SIGTERM, _terminate)
    outcome = Outcome()
    _say("Building a cluster of network namespaces: 2 nodes, 6 pods, an agent on each node.")
    lab = Lab.up(name, nodes=2, pods=3, cni=cni, manifests=examples_directory())
    with contextlib.ExitStack() as cleanup:
        if not keep:
            cleanup.callback(lab.down)
        steps.run(lab, outcome, _say)
        show_summary(outcome)
        if keep:
            _show_around(lab)
    sys.exit(0 if outcome.good else 1)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _say(text: str) -> None:
    click.echo(click.style("==> ", fg="cyan") + text, err=True)


def _show_around(lab: Lab) -> None:
    """Commands to try on a lab that was left standing."""
    node = lab.pin_dir("node2")
    click.echo(
        f"""
The lab {lab.name!r} is still running. Commands to try:
  lbctl lab status --name {lab.name}
  lbctl lab exec --lab {lab.name} {CLIENT} -- curl -s http://10.96.0.80/
  lbctl service list --pin-dir {node}
  lbctl flow list --pin-dir {node}
Remove it:
  lbctl lab down --name {lab.name}""",
        err=True,
    )
