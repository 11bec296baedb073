"""The load test by hand: an agent against an API server with any number of services.

    python -m tests.perf.scale --services 100 --services 10000 --services 50000

Prints medians with their spread; docs/scale.md says what they mean. Needs root.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from tests.perf.support.scale_node import Node, percentile
from tests.perf.support.scale_result import KERNEL, Result

FLOWS = 1000
FIRST = 10_000  # the size at which the first start of a version is timed, with its compiler
FEW = 100  # services, of which changes could not be told apart


class Measured:
    """Collects what rounds find, by measure."""

    def __init__(self, services: int, endpoints: int) -> None:
        self._size = (services, endpoints)
        self.results: dict[str, Result] = {}

    def add(self, measure: str, unit: str, value: float) -> None:
        result = self.results.setdefault(measure, Result(*self._size, measure, unit, []))
        result.values.append(value)


def starts(node: Node, found: Measured) -> None:
    """A start in an empty kernel, and one after a kill."""
    node.stop()
    node.forget()
    found.add("start until all programmed", "s", node.start())
    found.add("start: processor time", "s", node.cpu_seconds())
    found.add("resident", "MB", node.memory().resident)
    found.add("resident without mapped kernel maps", "MB", node.memory().without_maps)
    found.add("resident, own (anonymous)", "MB", node.memory().anonymous)
    node.open_flows(FLOWS)
    kernel = node.kernel_memory()
    found.add("kernel maps", "MB", sum(kernel.values()) / 1e6)
    for name, size in kernel.items():
        found.add(f"{KERNEL}{name}", "MB", size / 1e6)
    before = node.fingerprint()
    node.stop(signal.SIGKILL)
    found.add("restart, nothing changed", "s", node.start())
    found.add("restart: processor time", "s", node.cpu_seconds())
    after = node.fingerprint()
    found.add("restart: maps whose contents differ", "", sum(before[n] != after[n] for n in before))


def changes(node: Node, found: Measured, count: int, per_second: float, name: str) -> None:
    """One endpoint after the other, of one service after the other."""
    cpu = node.cpu_seconds()
    seen = node.change(count, per_second)
    found.add(f"{name}: p50", "ms", percentile(seen.delays, 0.50) * 1e3)
    found.add(f"{name}: p99", "ms", percentile(seen.delays, 0.99) * 1e3)
    found.add(f"{name}: processor time each", "ms", (node.cpu_seconds() - cpu) / count * 1e3)
    found.add(f"{name}: the last one's delay", "ms", seen.lag * 1e3)
    found.add(f"{name}: never seen", "", seen.missing)


def show(console: Console, results: list[Result]) -> None:
    """One row per measure, one column per number of services: median, lowest and highest."""
    sizes = list(dict.fromkeys(r.services for r in results))
    table = Table("measure", "unit", *(f"{size:,} services" for size in sizes))
    rows: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        rows.setdefault((result.measure, result.unit), {})[result.services] = result
    for (measure, unit), by_size in rows.items():
        cells = (by_size.get(size) for size in sizes)
        table.add_row(measure, unit, *(_cell(r.values) if r else "" for r in cells))
    console.print(table)


def _cell(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.4g}  ({low:.4g} to {high:.4g})" if len(values) > 1 else f"{middle:.4g}"


def run(services: int, endpoints: int, rounds: int, churn: float) -> list[Result]:
    """All measures of one size."""
    found = Measured(services, endpoints)
    with Node(services, endpoints, f"sc-{os.getpid()}") as node:
        node.start()  # compiles what is not in the caches
        if services == FIRST:
            node.stop()
            node.forget()
            with node.without_caches():
                found.add("first start of a version", "s", node.start())
        for number in range(rounds):
            click.echo(f"{services:,} services, round {number + 1}, load {_load()}", err=True)
            found.add("load average before", "", float(_load()))
            starts(node, found)
            if services < FEW:
                continue
            changes(node, found, min(300, services), 50.0, "one change")
            time.sleep(3)  # freed regions rest
            changes(node, found, min(services, round(5 * churn)), churn, f"{churn:g} changes/s")
            found.add("resident after the changes", "MB", node.memory().resident)
    return list(found.results.values())


def _load() -> str:
    return Path("/proc/loadavg").read_text().split()[0]


def prefer_us() -> None:
    """Others of this machine wait, but for the twentieth the kernel keeps for them."""
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


@click.command(help=__doc__)
@click.option("--services", type=int, multiple=True, default=(100, 10_000), show_default=True)
@click.option("--endpoints", type=int, default=10, show_default=True, help="Of each service.")
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--churn", type=float, default=1000.0, show_default=True, help="Changes per second.")
@click.option("--prefer/--no-prefer", default=False, help="Run before everything else.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="One line per measure.")
def main(
    services: tuple[int, ...],
    endpoints: int,
    rounds: int,
    churn: float,
    prefer: bool,
    json_file: Path | None,
) -> None:
    if prefer:
        prefer_us()
    console = Console(width=140)
    results: list[Result] = []
    for size in services:
        results += run(size, endpoints, rounds, churn)
        if json_file:
            lines = [msgspec.json.encode(r) + b"\n" for r in results]
            json_file.write_bytes(b"".join(lines))
    show(console, results)


if __name__ == "__main__":
    main()
