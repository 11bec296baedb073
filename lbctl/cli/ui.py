"""`lbctl ui`: a page about this node, for a browser on this machine or behind a port-forward."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import objects, options
from lbctl.errors import LbError, UsageError

if TYPE_CHECKING:
    from lbctl.ui.server import Server

PORT = 8042


@click.command()
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Loopback address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    metavar="PORT",
    help="Port to listen on; 0 takes any free one.",
)
@options.pin_dir
def command(address: str, port: int, pin_dir: Path) -> None:
    """Serve a web page about this node: services with their endpoints and rates, what is refused or
    dropped and why, who talks to what, and an explanation of each service. It is read-only.

    It listens on loopback only; everybody who can log in to this machine can read it. To reach it
    from elsewhere, use a port-forward to the agent's pod, or ssh -L. Ctrl-C stops it.

    \b
    lbctl ui
    kubectl -n lbctl-system exec POD -- lbctl ui    # and in another terminal:
    kubectl -n lbctl-system port-forward POD 8042
    """
    from lbctl.addresses import format_endpoint, is_loopback, parse_address
    from lbctl.inspect.opened import open_instance
    from lbctl.ui.answers import Asked
    from lbctl.ui.server import Server

    try:
        raw = parse_address(address)
    except ValueError as error:
        raise UsageError(
            f"--address {address!r} is not an IP address", "Give one like 127.0.0.1 or ::1."
        ) from error
    if not is_loopback(raw):
        raise UsageError(
            f"--address {address} is not a loopback address",
            "The page has no password. From elsewhere, use kubectl port-forward or ssh -L.",
        )
    with open_instance(pin_dir):
        pass  # or there is nothing to show
    asked = Asked(pin_dir)
    try:
        server = Server(address, port, asked.answers)
    except OSError as error:
        raise LbError(
            f"cannot listen on {format_endpoint(raw, port)}: {error.strerror}",
            "Choose another --port; 0 takes any free one.",
        ) from error
    with server, objects.log_as_notes(), _until_told(server), contextlib.closing(asked):
        click.echo(f"http://{format_endpoint(raw, server.server_address[1])}/")
        server.serve_forever()


@contextlib.contextmanager
def _until_told(server: Server) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it."""

    def end(*_: object) -> None:
        # Which waits for this thread, so from another.
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
