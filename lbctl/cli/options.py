"""Options that several commands share, and those that settings declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbctl.cli.output import FORMATS
from lbctl.pins import DEFAULT_PIN_DIR

if TYPE_CHECKING:
    from lbctl.config.options import Declared

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

pin_dir: Decorator = click.option(
    "--pin-dir",
    type=click.Path(path_type=Path, readable=False),  # root says so in better words
    default=DEFAULT_PIN_DIR,
    envvar="LBCTL_PIN_DIR",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Directory in the BPF file system where the instance is pinned.",
)


_names: Decorator = click.option(
    "--names",
    is_flag=True,
    help="Show names of nodes, and of pods that are endpoints, instead of addresses; reads them "
    "from the agent's source (the API or manifests).",
)

kubeconfig_for_names: Decorator = click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Show names of all pods, with this file's credentials; the agent's do not allow it to "
    "read pods.",
)


def naming(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whether and how addresses are shown by names; see `objects.places`."""
    return _names(kubeconfig_for_names(function))


def output_of(*more: str) -> Decorator:
    """-o with the usual formats, and these."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice((*FORMATS, *more)),
        default=FORMATS[0],
        show_default=True,
        help="Output format; wide is the table with more columns.",
    )


output: Decorator = output_of()

yes: Decorator = click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")


def of_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Every option that lbctl/config/settings.py declares with a flag, in that order."""
    from lbctl.config.settings import OPTIONS

    for declared in reversed(OPTIONS.values()):
        if declared.option.flag:
            function = _of(declared)(function)
    return function


def _of(declared: Declared) -> Decorator:
    """None and () mean that it was not given: the file may have a value then."""
    option = declared.option
    repeatable = " Repeatable." if declared.many else ""
    default = f"  [default: {declared.default}]" if declared.default else ""
    return click.option(
        *filter(None, (option.flag, option.short)),
        declared.name,
        type=_type(declared),
        is_flag=declared.written is bool,
        multiple=declared.many,
        default=None,
        envvar=option.env or None,
        show_envvar=bool(option.env),
        metavar=option.metavar or None,
        help=f"{option.help}{repeatable}{default}",
    )


def _type(declared: Declared) -> click.ParamType[Any]:
    if declared.words:
        return click.Choice(declared.words)
    if declared.bounds != (None, None):
        return click.IntRange(*declared.bounds)
    kinds: dict[object, click.ParamType[Any]] = {
        bool: click.BOOL,
        int: click.INT,
        Path: click.Path(path_type=Path),
    }
    return kinds.get(declared.written, click.STRING)
