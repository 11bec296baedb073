"""Options that say which objects and which node a question is about, shared by explain, drain and
verify; and what they, and trace, tell the person beside the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import click

from lbctl.cli import options

_OPTIONS = (
    click.option(
        "--manifests",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Ask about these Kubernetes objects (file or directory, YAML or JSON).",
    ),
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Ask the cluster that this file names.",
    ),
    click.option("--api-server", default="", metavar="URL", help="Ask this API server."),
    click.option(
        "--node-name", default="", metavar="NAME", help="As this node sees it. [default: this one]"
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The node's KubeProxyConfiguration or AgentConfiguration.",
    ),
    click.option(
        "--local-ip",
        "local_ips",
        multiple=True,
        metavar="IP",
        help="An address the node has besides those of its Node object. Repeatable.",
    ),
    click.option(
        "--service-cidr",
        "service_cidrs",
        multiple=True,
        metavar="CIDR",
        help="A range of service addresses. Repeatable.",
    ),
    options.pin_dir,
)


def question(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without any of them, the agent of the instance says where its objects are from, and what it
    knows of its node."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def say(text: str) -> None:
    """Something for the person, not for the program that reads the output."""
    click.echo(f"{click.style('note:', fg='yellow')} {text}", err=True)


@contextlib.contextmanager
def log_as_notes() -> Iterator[None]:
    """What the agent's code warns of is told to the person here: its default would be stdout."""
    import structlog

    def note(_: object, level: str, event: MutableMapping[str, Any]) -> str:
        details = [f"{name}: {value}" for name, value in event.items() if name != "event" and value]
        if level in ("warning", "error", "critical"):
            say("; ".join([str(event["event"]), *details]))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note])
    try:
        yield
    finally:
        structlog.configure(**before)
