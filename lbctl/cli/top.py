"""`lbctl top`: who has the most traffic through this node, now and now again."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lbctl.cli import objects, options
from lbctl.cli.output import Column, count, size, write, write_data
from lbctl.errors import UsageError
from lbctl.inspect import top
from lbctl.inspect.opened import open_instance
from lbctl.inspect.top import Looks, Top, TopRow

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ebpf.instance import Instance
    from lbctl.observe.places import Places

_KEYS = {"c": "connections", "p": "packets", "b": "bytes", "a": "active", "n": "name"}
_VIEWS = {"S": "services", "B": "backends", "C": "clients"}
_HELP = "c p b a n: sort by   S B C: services, backends, clients   /: filter   q: end"
_BESIDE = 6  # lines of the screen that are no rows


@click.command()
@click.option(
    "--backends", "kind", flag_value="backends", help="Show endpoints, from the flow table."
)
@click.option("--clients", "kind", flag_value="clients", help="Show clients, from the flow table.")
@click.option(
    "--sort",
    type=click.Choice(top.SORTS),
    default="bytes",
    show_default=True,
    help="What to sort by: the most first, or name from a to z.",
)
@click.option(
    "--filter", "wanted", default="", metavar="TEXT", help="Only rows with this text in a name."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two readings.",
)
@click.option("--once", is_flag=True, help="Measure one interval, print and exit: for scripts.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="With --once: print at most this many rows.",
)
@options.naming
@options.output
@options.pin_dir
def command(
    kind: str | None,
    sort: str,
    wanted: str,
    interval: float,
    once: bool,
    limit: int,
    names: bool,
    kubeconfig: Path | None,
    output: str,
    pin_dir: Path,
) -> None:
    """Show who has the most traffic: service ports, or with --backends or --clients, endpoints or
    clients.

    Rates are per second. Those of services come from counters. Those of endpoints and clients are
    added up over all flows, so a flow that ended since the last reading is not in them. The second
    line counts what was decided about packets in the interval, drops included. Keys sort, filter
    and change the view; the last line lists them.

    \b
    lbctl top --clients
    lbctl top --once --sort connections -o json | jq '.rows[:5]'
    """
    if not once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "top needs a terminal", "In scripts, use --once, with -o json for instance."
        )
    places = objects.places(pin_dir, kubeconfig) if names or kubeconfig else None
    with open_instance(pin_dir) as instance:
        if once:
            looks = Looks(kind or top.KINDS[0], _called(places))
            _once(instance, looks, sort, wanted, interval, limit, output)
        else:
            Screen(instance, kind or top.KINDS[0], sort, wanted, interval, places).run()


def _once(
    instance: Instance,
    looks: Looks,
    sort: str,
    wanted: str,
    interval: float,
    limit: int,
    output: str,
) -> None:
    looks.look(instance, time.monotonic())
    time.sleep(interval)
    found = looks.look(instance, time.monotonic())
    rows = top.arranged(found, sort, wanted, limit)
    if not write_data(Top(found.kind, found.seconds, tuple(rows), found.reasons), output):
        write(rows, COLUMNS, output, empty=f"no {found.kind}")


def _called(places: Places | None) -> Callable[[str], str]:
    def name(address: str) -> str:
        if places is None:
            return ""
        place = places.named(address)
        return place.name or (f"{address} ({place.hint})" if place.hint else "")

    return name


class Screen:
    """The live table, until a key ends it."""

    def __init__(
        self,
        instance: Instance,
        kind: str,
        sort: str,
        wanted: str,
        interval: float,
        places: Places | None = None,
    ) -> None:
        self._instance = instance
        self._kind, self._sort, self._wanted = kind, sort, wanted
        self._interval = interval
        self._places = places
        self._looks = Looks(kind, _called(places))
        self._typing = False

    def run(self) -> None:
        from rich.live import Live

        found = self._looks.look(self._instance, time.monotonic())
        with _keys(), Live(self.shown(found), screen=True, auto_refresh=False) as live:
            due = time.monotonic() + self._interval
            while True:
                key = _key(max(0.0, due - time.monotonic()))
                if key is not None and not self._pressed(key):
                    return
                if key is None or found.kind != self._kind:
                    if self._places is not None:
                        self._places.refresh()
                    found = self._looks.look(self._instance, time.monotonic())
                    due = time.monotonic() + self._interval
                live.update(self.shown(found), refresh=True)

    def _pressed(self, key: str) -> bool:
        """Returns whether to go on."""
        if self._typing:
            self._typing = key not in "\r\n\x1b"
            if key in ("\x7f", "\b"):
                self._wanted = self._wanted[:-1]
            elif self._typing and key.isprintable():
                self._wanted += key
            return True
        if key == "/":
            self._typing, self._wanted = True, ""
        elif key in _VIEWS:
            self._kind = _VIEWS[key]
            self._looks = Looks(self._kind, _called(self._places))
        else:
            self._sort = _KEYS.get(key, self._sort)
        return key != "q"

    def shown(self, found: Top) -> RenderableType:
        """What is drawn."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, expand=True)
        for column in COLUMNS:
            right = column.number
            table.add_column(column.title, justify="right" if right else "left", no_wrap=True)
        # A terminal behind `kubectl exec` may not have said its size yet: 80 by 24 then.
        room = max(1, shutil.get_terminal_size().lines - _BESIDE)
        for row in top.arranged(found, self._sort, self._wanted, room):
            table.add_row(*(column.cell(row) for column in COLUMNS))
        what = f"{found.kind} by {self._sort}"
        if self._wanted or self._typing:
            what += f", with {self._wanted!r}{'_' if self._typing else ''}"
        decided = "  ".join(
            f"{reason} {count(round(rate))}/s" for reason, rate in found.reasons.items()
        )
        return Group(Text(what, style="bold"), Text(decided or "no packets"), table, Text(_HELP))


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys come one by one and are not shown; Ctrl-C still ends."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(seconds: float) -> str | None:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else None


COLUMNS: list[Column[TopRow]] = [
    Column("NAME", lambda row: row.name),
    Column("ACTIVE", lambda row: count(row.active), number=True),
    Column("CONNS/S", lambda row: f"{row.connections:.1f}", number=True),
    Column("PACKETS/S", lambda row: count(round(row.packets)), number=True),
    Column("BYTES/S", lambda row: size(round(row.bytes)), number=True),
    Column("HISTORY", lambda row: top.sparkline(row.history)),
]
