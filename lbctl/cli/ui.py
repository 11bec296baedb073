"""`lbctl ui`: a page about this node, for a browser on this machine or behind a port-forward."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import click

from lbctl.cli import objects, options
from lbctl.errors import LbError, UsageError

PORT = 8042


@click.command()
@click.option(
    "--address", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Of loopback."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=PORT,
    show_default=True,
    metavar="PORT",
    help="0: any that is free.",
)
@options.pin_dir
def command(address: str, port: int, pin_dir: Path) -> None:
    """Serve a page about this node: services with their endpoints, rates, what is turned away and
    why, who talks to what, and for each service an explanation. Nothing can be changed by it.

    It is served on loopback alone: everybody who can log in here can read it. From elsewhere, by a
    port-forward to the agent's pod, or ssh -L. Ctrl-C ends it.

    \b
    lbctl ui
    kubectl -n lbctl-system exec POD -- lbctl ui    # and, beside it:
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
            f"--address {address!r} is no address", "Like 127.0.0.1 or ::1."
        ) from error
    if not is_loopback(raw):
        raise UsageError(
            f"--address {address} is not loopback's",
            "The page has no password. From elsewhere: kubectl port-forward, or ssh -L.",
        )
    with open_instance(pin_dir):
        pass  # or there is nothing to show
    asked = Asked(pin_dir)
    try:
        server = Server(address, port, asked.answers)
    except OSError as error:
        raise LbError(
            f"cannot listen on {format_endpoint(raw, port)}: {error.strerror}",
            "--port names another one; 0 takes any that is free.",
        ) from error
    with server, objects.log_as_notes(), _until_told(server), contextlib.closing(asked):
        click.echo(f"http://{format_endpoint(raw, server.server_address[1])}/")
        server.serve_forever()


@contextlib.contextmanager
def _until_told(server: object) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it."""
    from lbctl.ui.server import Server

    assert isinstance(server, Server)

    def end(*_: object) -> None:
        # Which waits for this thread, so from another.
        threading.Thread(target=server.shutdown, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
