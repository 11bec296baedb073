"""`lbctl observe`: new flows, ends of flows, refusals and drops, as they happen."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lbctl.cli import objects, options
from lbctl.cli.flow import TARGET, target
from lbctl.cli.output import size

if TYPE_CHECKING:
    from types import FrameType

    from lbctl.observe.eventfilter import EventFilter
    from lbctl.observe.events import End, EventRow
    from lbctl.observe.stream import Stream

FORMATS = ("compact", "table", "json")
_VERDICTS = ("opened", "ended", "refused", "dropped")
_STYLES = {"opened": "green", "ended": "cyan", "refused": "yellow", "dropped": "red"}


def _reasons(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from lbctl.cli.main import unknown
    from lbctl.observe.eventfilter import known_reasons

    known = known_reasons()
    for reason in value:
        if reason not in known:
            raise unknown(ctx, "reason", reason, known, f"One of: {', '.join(known)}.")
    return value


def _seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    from lbctl.durations import parse_duration

    try:
        return parse_duration(value) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


@click.command()
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="SERVICE",
    help="Only this service: NAME or NAMESPACE/NAME, optionally with :PORT. Repeatable.",
)
@click.option(
    "--pod",
    "pods",
    multiple=True,
    metavar="POD",
    help="Client or endpoint is this pod: NAME or NAMESPACE/NAME. Repeatable.",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NODE",
    help="Client or endpoint is on this node. Repeatable.",
)
@click.option(
    "--address",
    callback=target,
    metavar=TARGET,
    help="Client, service address or endpoint is this one.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=None,
    metavar="PORT",
    help="Port of the client, the service address or the endpoint.",
)
@click.option(
    "--protocol",
    type=click.Choice(["TCP", "UDP", "SCTP"], case_sensitive=False),
    help="Only this protocol.",
)
@click.option(
    "--verdict",
    "verdicts",
    type=click.Choice(_VERDICTS),
    multiple=True,
    help="Only events of this kind. Repeatable.",
)
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    callback=_reasons,
    metavar="REASON",
    help="Only events with this reason (docs/observability.md lists them). Repeatable.",
)
@click.option(
    "--last", type=click.IntRange(min=1), metavar="N", help="Show the last N events that are known."
)
@click.option(
    "--since", callback=_seconds, metavar="DURATION", help="Show events of the last 30s, 5m, 1h."
)
@click.option(
    "--follow", "-f", is_flag=True, help="Continue with new events after --last or --since."
)
@click.option(
    "--duration", "seconds", callback=_seconds, metavar="DURATION", help="Stop after 30s, 5m, 1h."
)
@options.kubeconfig_for_names
@click.option(
    "--end-with-stdin",
    is_flag=True,
    help="Stop when stdin has a line or ends: for pipes that pass on no signal.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="One line per event, columns, or one JSON object per line.",
)
@options.pin_dir
def command(
    last: int | None,
    since: float | None,
    follow: bool,
    seconds: float | None,
    kubeconfig: Path | None,
    end_with_stdin: bool,
    output: str,
    pin_dir: Path,
    **chosen: Any,
) -> None:
    """Show flows opening and ending, refusals and drops on this node, as they happen: who called
    which service, which endpoint was chosen, or why none was.

    An event has to match all filters that are given. Events exist only while somebody listens, so
    --last and --since show those that another listener got at the time, and flows that are still
    open. Ctrl-C stops after everything received so far has been shown. The last line says how many
    events were lost because they came faster than they could be read.

    \b
    lbctl observe --service default/web
    lbctl observe --verdict dropped --verdict refused -o json
    lbctl observe --pod web-7d4b9 --since 10m --follow
    """
    from lbctl.observe.stream import Asked, Stream

    live = follow or not (last or since)
    asked = Asked(_filter(**chosen), last or 0, since or 0.0, live, seconds or 0.0)
    stream = Stream(pin_dir, asked, kubeconfig)
    _say_unknown(pin_dir, asked.wanted.services)
    if end_with_stdin:
        threading.Thread(target=_wait_for_stdin, args=(stream,), daemon=True).start()
    with _ending(stream):
        shown = _show(stream, output)
    said = "1 event was" if shown == 1 else f"{shown} events were"
    click.echo(f"{said} shown, {stream.lost} lost", err=True)


def _filter(
    services: tuple[str, ...], port: int | None, protocol: str | None, **chosen: Any
) -> EventFilter:
    from lbctl.inspect.flows import PROTOCOLS
    from lbctl.observe.eventfilter import EventFilter

    numbers = {name: number for number, name in PROTOCOLS.items()}
    number = numbers[protocol.upper()] if protocol else 0
    return EventFilter(services=services, port=port or 0, protocol=number, **chosen)


def _say_unknown(pin_dir: Path, services: Sequence[str]) -> None:
    """A service that is not there may come; but a name that is wrong is never told of."""
    from lbctl.errors import NotFound
    from lbctl.inspect import names
    from lbctl.inspect.opened import open_instance

    with open_instance(pin_dir) as instance:
        for query in services:
            try:
                names.find(instance.names, query)
            except NotFound as error:
                objects.say(f"{error.message} now. {error.hint}")


@contextlib.contextmanager
def _ending(stream: Stream) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the stream, with all that was told before; a second one at once."""

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stream.end()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_stdin(stream: Stream) -> None:
    """`kubectl exec` hands on no signal, but what is written, and that its caller has gone."""
    with contextlib.suppress(OSError):
        os.read(sys.stdin.fileno(), 1)
    stream.end()


def _show(stream: Stream, output: str) -> int:
    """Returns how many events there were."""
    from lbctl.observe.stream import Lost, Note

    shown = 0
    titles = output == "table"
    encoder = msgspec.json.Encoder()
    for event in stream.events():
        if isinstance(event, Note):
            objects.say(event.text)
        elif isinstance(event, Lost):
            if output == "json":
                click.echo(encoder.encode({"lost": event.count}))
            else:
                objects.say(f"{event.count} events have been lost so far")
        else:
            shown += 1
            if titles:
                titles = False
                click.echo(click.style(_columns([title for title, _ in _TITLES]), bold=True))
            click.echo(encoder.encode(event) if output == "json" else _LINES[output](event))
    return shown


def _compact(row: EventRow) -> str:
    """12:00:01.234 opened TCP default/a:40000 -> default/web:http (10.96.0.1:80) -> ..."""
    said = click.style(f"{row.verdict:<7}", fg=_STYLES[row.verdict])
    service = f"{row.service.label} ({row.address})" if row.service else row.address
    way = [_side(row.client) or "?", service, *([_side(row.backend)] if row.backend else [])]
    more = [row.reason] if row.reason else []
    if row.verdict == "ended":
        more += [f"{row.seconds:.0f}s", f"in {_traffic(row.packets_in, row.bytes_in)}"]
        more += [f"out {_traffic(row.packets_out, row.bytes_out)}"]
    tail = f"  {', '.join(more)}" if more else ""
    return f"{row.time[11:23]} {said} {row.protocol:<4} {' -> '.join(way)}{tail}"


def _side(end: End) -> str:
    return f"{end.text} ({end.hint})" if end.hint else end.text


def _traffic(packets: int, octets: int) -> str:
    return f"{packets}/{size(octets)}B"


# Columns of a stream cannot wait for all of its rows: they have widths.
_TITLES = (
    *(("TIME", 12), ("EVENT", 7), ("PROTO", 5), ("CLIENT", 36), ("SERVICE", 30)),
    *(("ADDRESS", 22), ("BACKEND", 36), ("REASON", 20), ("BYTES", 0)),
)


def _columns(cells: Sequence[str]) -> str:
    padded = (text.ljust(width) for text, (_, width) in zip(cells, _TITLES, strict=True))
    return " ".join(padded).rstrip()


def _table(row: EventRow) -> str:
    octets = size(row.bytes_in + row.bytes_out) if row.verdict == "ended" else ""
    return _columns(
        [
            row.time[11:23],
            row.verdict,
            row.protocol,
            row.client.text,
            row.service.label if row.service else "-",
            row.address,
            row.backend.text if row.backend else "-",
            row.reason,
            octets,
        ]
    )


_LINES = {"compact": _compact, "table": _table}
