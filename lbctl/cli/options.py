"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lbctl.cli.output import FORMATS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

DEFAULT_PIN_DIR = "/sys/fs/bpf/lbctl"

pin_dir: Decorator = click.option(
    "--pin-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_PIN_DIR,
    envvar="LBCTL_PIN_DIR",
    show_default=True,
    show_envvar=True,
    metavar="DIR",
    help="Directory in bpffs that holds the instance.",
)

output: Decorator = click.option(
    "-o",
    "--output",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="How to print it; wide is the table with more columns.",
)

yes: Decorator = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
