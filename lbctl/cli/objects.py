"""Options that say which objects and which node a question is about, shared by explain, drain,
verify and trace; and what these tell the person beside the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl.cli import options

if TYPE_CHECKING:
    from lbctl.observe.places import Places

_SAID = 10  # notes of one kind: an answer is not to be lost behind them

_MANIFESTS = click.option(
    "--manifests",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Use the Kubernetes objects in this file or directory (YAML or JSON), not those that the "
    "node's agent uses.",
)
_CLUSTER = (
    click.option(
        "--kubeconfig",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Read the objects from the cluster that this file names.",
    ),
    click.option(
        "--api-server", default="", metavar="URL", help="Read the objects from this API server."
    ),
)


def _of_node(more: str, default: str = "") -> tuple[options.Decorator, ...]:
    """What the node is that is asked about; `more` is said of each."""
    return (
        click.option(
            "--node-name", default="", metavar="NAME", help=f"Answer for this node.{more}{default}"
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"The node's KubeProxyConfiguration or AgentConfiguration.{more}",
        ),
        click.option(
            "--local-ip",
            "local_ips",
            multiple=True,
            metavar="IP",
            help=f"Another address of the node, not in its Node object. Repeatable.{more}",
        ),
        click.option(
            "--service-cidr",
            "service_cidrs",
            multiple=True,
            metavar="CIDR",
            help="Range of service addresses; packets to an address in it that no service has are "
            f"dropped. Repeatable.{more}",
        ),
    )


def question(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without any of them, the objects and the node are those that the instance's agent uses."""
    of_node = _of_node("", " [default: this one]")
    return _with((_MANIFESTS, *_CLUSTER, *of_node, options.pin_dir), function)


def manifests(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for `trace`, which needs to be told a node only with manifests."""
    return _with((_MANIFESTS, *_of_node(" Only with --manifests.")), function)


def _with(
    chosen: tuple[options.Decorator, ...], function: Callable[..., Any]
) -> Callable[..., Any]:
    for option in reversed(chosen):
        function = option(function)
    return function


def places(pin_dir: Path, kubeconfig: Path | None) -> Places:
    """What is known of addresses, read once, and said if it cannot be."""
    from lbctl.observe.places import Places

    found = Places.of_agent(pin_dir, kubeconfig)
    with log_as_notes():
        found.refresh()
    if found.problem:
        say(found.problem)
    return found


def say(text: str) -> None:
    """Something for the person, not for the program that reads the output."""
    click.echo(f"{click.style('note:', fg='yellow')} {text}", err=True)


def say_all(texts: Sequence[str]) -> None:
    """The same of many, such as what is wrong with objects: the first ones, and how many more."""
    for text in texts[:_SAID]:
        say(text)
    if len(texts) > _SAID:
        say(f"{len(texts) - _SAID} more of that kind")


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
