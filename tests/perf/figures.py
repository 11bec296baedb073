"""Measures everything that docs/benchmarks.md and docs/scale.md show, and writes it there.

\b
    python -m tests.perf.figures                 measure all of it, root
    python -m tests.perf.figures --only bench    ... with lbctl bench alone: 12 minutes
    python -m tests.perf.figures --only agent    ... with tests.perf.scale alone
    python -m tests.perf.figures --quick         try it: small, shown, and not kept
    python -m tests.perf.figures --no-measuring  the documents again, from the saved results

Results are kept in docs/benchmarks; what was not measured this time stays as it was. In the
documents, what is between `<!-- figures: NAME -->` and `<!-- end of figures -->` is written here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from lbctl.bench import report
from lbctl.bench.records import about_path
from tests.perf.support.figures import TABLES
from tests.perf.support.saved_results import Data

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "scale.md")
SAVED = ROOT / "docs" / "benchmarks"
BENCH, AGENT = SAVED / "run.jsonl", SAVED / "agent.jsonl"

_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n\n).*?(\n?<!-- end of figures -->)", re.DOTALL)
# All peers, and then whether ours are the same with many services.
_ALL_PEERS = ("--services", "1,10000")
_OURS = (
    *("--services", "50000", "--peers", "none,lbctl-tc,lbctl-fast,lbctl-socket"),
    *("--measures", "connect_latency,connection_rate,roundtrip_added,cpu_per_packet"),
)
_QUICK = ("--quick", "--services", "1,100")


def rendered(text: str, data: Data) -> str:
    """A document with its tables as `data` have them."""
    return _PLACE.sub(lambda place: place[1] + TABLES[place[2]](data) + place[3], text)


def write() -> None:
    """All documents and plots from the saved results."""
    data = Data.read(BENCH, AGENT)
    for document in DOCUMENTS:
        document.write_text(rendered(document.read_text(), data))
    shown = "".join(document.read_text() for document in DOCUMENTS)
    for path in report.write_plots(data.bench, SAVED):
        if path.name not in shown:
            path.unlink()


def show(bench: Path, agent: Path) -> None:
    """All tables of results that are not kept."""
    data = Data.read(bench, agent)
    for name, table in TABLES.items():
        click.echo(f"{name}\n\n{table(data)}")


def measure_bench(to: Path, quick: bool) -> None:
    """Into a new file."""
    bench = [sys.executable, "-m", "lbctl", "bench", "--name", "figures", "--resume", str(to)]
    for words in (_QUICK,) if quick else (_ALL_PEERS, _OURS):
        subprocess.run([*bench, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def measure_agent(to: Path, quick: bool) -> None:
    """Into a new file."""
    scale = [sys.executable, "-m", "tests.perf.scale", "--json", str(to)]
    for size in (1, 100) if quick else (1, 100, 10_000, 50_000):
        scale += ["--services", str(size)]
    scale += ["--rounds", "1" if quick else "2"]
    subprocess.run(scale, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def keep(fresh: Path, kept: Path) -> None:
    """All of a part has been measured: it takes the former results' place."""
    shutil.move(fresh, kept)
    if about_path(fresh).exists():
        shutil.move(about_path(fresh), about_path(kept))


_PARTS: dict[str, tuple[Path, Callable[[Path, bool], None]]] = {
    "bench": (BENCH, measure_bench),
    "agent": (AGENT, measure_agent),
}


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(_PARTS)), help="Measure only that part.")
@click.option("--quick", is_flag=True, help="Small, and not kept.")
@click.option("--no-measuring", is_flag=True, help="Only write the documents.")
def main(only: str | None, quick: bool, no_measuring: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="lbctl-figures-") as directory:
        for name, (kept, measure) in _PARTS.items():
            if no_measuring or only not in (None, name):
                continue
            began = time.monotonic()
            fresh = Path(directory, kept.name)
            measure(fresh, quick)
            click.echo(f"{name}: {time.monotonic() - began:.0f} s", err=True)
            if not quick:
                keep(fresh, kept)
        if quick:
            show(Path(directory, BENCH.name), Path(directory, AGENT.name))
        else:
            write()


if __name__ == "__main__":
    main()
