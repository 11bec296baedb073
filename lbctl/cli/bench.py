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
  lbctl bench --resume run.jsonl                    continues that one after an interruption
  lbctl bench --resume run.jsonl --no-measuring --report bench.md
  lbctl bench --services 10000 --peers none,nftables,lbctl-tc --measures connect_latency
  lbctl bench --rules saved-by-iptables-save --services 1
  lbctl bench --kube-proxy ./kube-proxy --services 1000
  lbctl bench --kube-proxy ./kube-proxy --services 1000 --min-sync-period 0.1

It works in network namespaces of its own, which it removes, and leaves the machine's network,
rules and settings alone. Other load on the machine distorts the figures: run nothing else.
"""


def _numbers(_context: click.Context, _option: click.Parameter, value: str | None) -> list[int]:
    words = [word for word in (value or "").split(",") if word]
    if not all(word.isdecimal() and int(word) for word in words):
        raise click.BadParameter(f"{value!r} is not a list of numbers like 1,100,1000")
    return sorted({int(word) for word in words})


def _cpu(context: click.Context, option: click.Parameter, value: int | None) -> int:
    usable = os.sched_getaffinity(0)
    if value is not None and value not in usable | {-1}:
        known = ", ".join(map(str, sorted(usable)))
        raise click.BadParameter(f"there is no CPU {value}, but {known}", context, option)
    return max(usable) if value is None else value


@click.command(epilog=EPILOG)
@click.option(
    "--services",
    callback=_numbers,
    metavar="LIST",
    help="Numbers of services to measure with.  "
    f"[default: {FULL_SERVICES}; with --quick {QUICK_SERVICES}]",
)
@click.option(
    "--endpoints",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Endpoints per service.",
)
@click.option("--peers", default="", metavar="LIST", help="What to compare.  [default: all]")
@click.option("--measures", default="", metavar="LIST", help="What to measure.  [default: all]")
@click.option("--quick", is_flag=True, help="Fewer rounds: takes about two minutes.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write raw data to this file as it comes, as JSON lines; FILE.about.json describes "
    "the machine and the run.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Continue an interrupted run: measure what this --json file lacks, and append it.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a report: a self-contained .html file with plots, or .md.",
)
@click.option(
    "--no-measuring",
    is_flag=True,
    help="Only show and report what the file given to --resume holds.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the plots to this directory, as SVG and PNG.",
)
@click.option(
    "--rules",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Load these rules, saved on a node by iptables-save or nft, instead of generated ones.",
)
@click.option(
    "--kube-proxy",
    "kube_proxy",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PATH",
    help="Run this kube-proxy binary, in both modes, instead of loading generated rules.",
)
@click.option(
    "--min-sync-period",
    type=click.FloatRange(0.001, 30),
    metavar="SECONDS",
    help="Shortest time between two syncs of --kube-proxy.  [default: 1, as kube-proxy's own]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300.0,
    show_default=True,
    help="Give up loading rules after this many seconds, and report that.",
)
@click.option(
    "--cpu",
    type=int,
    callback=_cpu,
    help="CPU to run the connection generator on.  [default: the last; -1: any]",
)
@click.option(
    "--service",
    "service",
    metavar="HOST:PORT",
    help="Only compare connections to this existing service with connections to --pods; see "
    "deploy/bench.",
)
@click.option(
    "--pods",
    metavar="HOST:PORT",
    help="With --service: a name that resolves to the service's pods.",
)
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
    cpu: int,
    service: str | None,
    pods: str | None,
    name: str,
) -> None:
    """Measure what a service costs: opening a connection, a packet, a change, memory.

    Compares, in alternating rounds of one run and each on a node of its own: no load balancer,
    kube-proxy's rules in iptables (both variants) and nftables, and lbctl. What cannot run on this
    machine is reported with the reason. Needs root.
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
        raise UsageError("--rules and --kube-proxy cannot be combined")
    if min_sync_period and not kube_proxy:
        raise UsageError("--min-sync-period needs --kube-proxy PATH")
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
        cpu=cpu,
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
        raise UsageError("--json and --resume cannot be combined: --resume adds to its own file")
    if resume:
        return Results.resume(resume)
    if json_file and json_file.exists():
        raise UsageError(
            f"--json: {json_file} exists", f"Continue it with --resume {json_file}, or remove it."
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
    from lbctl.cli.root import require_root

    require_root("bench", "makes network namespaces")
    # As with Ctrl-C: unwind, and thereby clean up.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _progress() as progress:
            runs.run(options, results, progress)
    finally:
        results.save_about()
        if sys.exc_info()[0] is not None and results.path is not None and results.records:
            click.echo(f"What was measured is kept; to continue: --resume {results.path}", err=True)


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
