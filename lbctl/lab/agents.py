"""The agents of a lab: one process per node, in the node's namespace and cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lbctl.lab import process
from lbctl.lab.state import AgentOptions, Paths
from lbctl.lab.topology import CLUSTER_CIDRS, SERVICE_CIDRS, Node

PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Environment in which this Python finds this package, installed or not."""
    known = os.environ.get("PYTHONPATH")
    roots = [str(PACKAGE_ROOT), known] if known else [str(PACKAGE_ROOT)]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(roots))


def lbctl_command(*arguments: str) -> list[str]:
    """The command line of `lbctl` with `arguments`, as this very code."""
    script = Path(sys.executable).with_name("lbctl")
    start = [str(script)] if script.exists() else ["-c", "from lbctl.cli.main import main; main()"]
    return [sys.executable, *start, *arguments]


def arguments(paths: Paths, node: Node, options: AgentOptions) -> list[str]:
    """What `lbctl` is called with to serve `node`."""
    given = [
        "agent",
        *("--manifests", str(paths.manifests)),
        *("--node-name", node.name),
        *("--pin-dir", str(paths.pin_dir(node.name))),
        *("--cgroup", str(paths.cgroup(node))),
        *("--services", str(options.services)),
        *("--endpoints", str(options.endpoints)),
        *("--flows", str(options.flows)),
    ]
    for cidr in SERVICE_CIDRS:
        given += ["--service-cidr", cidr]
    for cidr in CLUSTER_CIDRS:
        given += ["--cluster-cidr", cidr]
    return [*given, *options.extra]


def start(paths: Paths, node: Node, options: AgentOptions) -> subprocess.Popen[bytes]:
    """Start the agent of `node`; its output is appended to the node's log."""
    command = lbctl_command(*arguments(paths, node, options))
    with paths.log(node.name).open("ab") as log:
        return subprocess.Popen(
            process.command_in(node.namespace, paths.cgroup(node), command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            cwd="/",
            start_new_session=True,  # a Ctrl-C for `lab up` or the demo is not for the agents
        )
