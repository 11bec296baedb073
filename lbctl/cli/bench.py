"""`lbctl bench`: what a service costs here, with us, with rules, and without anything."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from lbctl.errors import UsageError

if TYPE_CHECKING:
    from lbctl.bench.options import Options
    from lbctl.bench.records import Results

TERMINATED = 128 + signal.SIGTERM
FULL_SERVICES = "1,100,1000,10000"
QUICK_SERVICES = "1,100,1000"

EPILOG = """\b
Examples:
  lbctl bench --quick --report bench.html           two minutes
  lbctl bench --json run.jsonl --report bench.html  a quarter of an hour
  lbctl bench --resume run.jsonl                    goes on where that was interrupted
  lbctl bench --resume run.jsonl --no-measuring --report bench.md
  lbctl bench --services 10000 --peers none,nftables,lbctl-tc --measures connect_latency
  lbctl bench --rules saved-by-iptables-save --services 1
  lbctl bench --kube-proxy ./kube-proxy --services 1000
  lbctl bench --kube-proxy ./kube-proxy --services 1000 --min-sync-period 0.1

It works in network namespaces of its own, which it removes, and leaves the machine's network,
rules and settings alone. Figures are worth what else the machine does meanwhile: run it alone.
"""


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> list[int]:
    try:
        return sorted({int(word) for word in (value or "").split(",") if word})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,100,1000") from None


@click.command(epilog=EPILOG)
@click.option(
    "--services",
    callback=_numbers,
    metavar="LIST",
    help=f"Numbers of services.  [default: {FULL_SERVICES}; with --quick {QUICK_SERVICES}]",
)
@click.option(
    "--endpoints", type=click.IntRange(1), default=3, show_default=True, help="Per service."
)
@click.option("--peers", default="", metavar="LIST", help="Which peers.  [default: all]")
@click.option("--measures", default="", metavar="LIST", help="Which measures.  [default: all]")
@click.option("--quick", is_flag=True, help="Fewer turns: about two minutes.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the raw data as JSON lines, as they come; FILE.about.json has the rest.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Measure what that --json file does not have yet, and add it.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a report: one self-contained .html file with plots, or .md.",
)
@click.option(
    "--no-measuring", is_flag=True, help="Only show and report what --resume's file holds."
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the plots there, as SVG and PNG.",
)
@click.option(
    "--rules",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Rules saved on a node, by iptables-save or nft, instead of generated ones.",
)
@click.option(
    "--kube-proxy",
    "kube_proxy",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PATH",
    help="Run this kube-proxy, in both modes, instead of loading rules of its shape.",
)
@click.option(
    "--min-sync-period",
    type=click.FloatRange(0.001, 30),
    metavar="SECONDS",
    help="The least time between two syncs of --kube-proxy.  [default: 1, as its own]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Seconds that loading a peer may take; what is not finished then is reported so.",
)
@click.option(
    "--cpu", type=int, help="CPU of the connection generator.  [default: the last; -1: any]"
)
@click.option(
    "--service",
    "service",
    metavar="HOST:PORT",
    help="Only this: connections to a service as it is, against --pods; see deploy/bench.",
)
@click.option("--pods", metavar="HOST:PORT", help="A name of the service's pods, for --service.")
@click.option("--name", default="bench", show_default=True, help="Part of the namespaces' names.")
def command(
    services: list[int],
    endpoints: int,
    peers: str,
    measures: str,
    quick: bool,
    json_file: Path | None,
    resume: Path | None,
    report: Path | None,
    no_measuring: bool,
    plots: Path | None,
    rules: Path | None,
    kube_proxy: Path | None,
    min_sync_period: float | None,
    timeout: float,
    cpu: int | None,
    service: str | None,
    pods: str | None,
    name: str,
) -> None:
    """Measure what a service costs: a connection, a packet, a change, memory.

    Side by side in one run, on nodes of their own, in turns: no load balancer at all, kube-proxy's
    rules in iptables (both variants) and nftables, and lbctl. What cannot run here is reported with
    the reason. Needs root.
    """
    from lbctl.bench import kubeproxy, saved
    from lbctl.bench import report as reports
    from lbctl.bench.measures import Effort
    from lbctl.bench.options import PACKETS, PER_SERVICES, RATE, Options
    from lbctl.bench.records import PEERS

    if report:
        reports.check_path(report)
    if no_measuring and not resume:
        raise UsageError("--no-measuring needs --resume FILE, to have something to show")
    if bool(service) != bool(pods):
        raise UsageError("--service and --pods need each other")
    if rules and kube_proxy:
        raise UsageError("--rules and --kube-proxy exclude each other")
    if min_sync_period and not kube_proxy:
        raise UsageError("--min-sync-period needs --kube-proxy PATH, whose it is")
    if kube_proxy:
        kubeproxy.version(kube_proxy)  # it can be run, or the reader is told
    usual = QUICK_SERVICES if quick else FULL_SERVICES
    options = Options(
        services=tuple(services or map(int, usual.split(","))),
        endpoints=endpoints,
        peers=_chosen("--peers", peers, PEERS),
        measures=_chosen("--measures", measures, (*PER_SERVICES, *PACKETS, RATE)),
        effort=Effort.quick() if quick else Effort(),
        timeout=timeout,
        cpu=max(os.sched_getaffinity(0)) if cpu is None else cpu,
        name=name,
        saved=saved.read(rules) if rules else None,
        kube_proxy=kube_proxy,
        min_sync_period=min_sync_period or Options().min_sync_period,
    )
    results = _results(json_file, resume)
    if service and pods:
        _measure_in_place(service, pods, services[0] if services else 0, options, results)
    elif not no_measuring:
        _measure(options, results)
    reports.show(results)
    if report:
        reports.write(results, report)
        click.echo(f"report: {report}", err=True)
    if plots:
        for path in reports.write_plots(results, plots):
            click.echo(f"plot: {path}", err=True)


def _chosen(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a list; all there are for an empty one. UsageError names an unknown one."""
    words = tuple(word for word in text.split(",") if word)
    for word in words:
        if word not in known:
            raise UsageError(f"{option}: there is no {word!r}", f"There are: {', '.join(known)}")
    return words or known


def _results(json_file: Path | None, resume: Path | None) -> Results:
    from lbctl.bench.records import Results

    if json_file and resume:
        raise UsageError("--json and --resume exclude each other: --resume adds to its own file")
    if resume:
        return Results.resume(resume)
    if json_file and json_file.exists():
        raise UsageError(
            f"--json: {json_file} exists", f"Go on with it: --resume {json_file}; or remove it."
        )
    return Results(json_file)


def _measure_in_place(
    service: str, pods: str, services: int, options: Options, results: Results
) -> None:
    from lbctl.bench import inplace

    effort = options.effort
    plan = inplace.plan(service, pods, effort.turns, effort.connections, services)
    with _progress() as progress:
        inplace.measure(plan, results, progress)
    results.save_about()


def _measure(options: Options, results: Results) -> None:
    from lbctl.bench import run as runs
    from lbctl.cli.lab import require_root

    require_root()
    # As with Ctrl-C: unwind, and thereby clean up.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _progress() as progress:
            runs.run(options, results, progress)
    finally:
        results.save_about()
        if sys.exc_info()[0] is not None and results.path is not None and results.records:
            click.echo(f"What was measured is kept; go on: --resume {results.path}", err=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, str], None]]:
    """Shows what is going on: one changing line on a terminal, else a line per step."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda what, detail: status.update(f"{what}  {detail}")
        return
    said: list[str] = []
    start = time.monotonic()

    def say(what: str, _detail: str) -> None:
        if said[-1:] != [what]:
            said[:] = [what]
            click.echo(f"{time.monotonic() - start:5.0f} s  {what}", err=True)

    yield say


def _terminate(_number: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
