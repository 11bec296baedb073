"""Reports of a benchmark: tables, who lost, the page that needs nothing beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from lbctl.bench import plots, report, tables
from lbctl.bench.records import Distribution, Results, summary
from lbctl.cli.main import command
from lbctl.errors import UsageError


@pytest.fixture
def results() -> Results:
    made = Results()
    for services in (1, 1000):
        made.add(
            [
                summary("none", services, "connect_latency", [10.0, 11.0, 12.0], 1.0),
                summary("nftables", services, "connect_latency", [14.0, 15.0, 16.0], 1.4),
                summary("lbctl-tc", services, "connect_latency", [11.0, 12.0, 13.0], 1.1),
                summary("nftables", services, "kernel_memory", [4.0]),
                summary("lbctl-tc", services, "kernel_memory", [150.0]),
            ]
        )
    made.miss("ipvs", 0, "all", "this <kernel> has none")
    made.about.distributions.append(Distribution("none", 1000, tuple(map(float, range(101)))))
    made.about.machine["kernel"] = "Linux"
    return made


def test_a_table_per_measure(results: Results) -> None:
    latency, memory = tables.of_measures(results.records, results.about)
    assert latency.head == ("peer", "1 services", "1,000 services")
    assert [row[0] for row in latency.rows] == ["none", "nftables", "lbctl-tc"]
    assert latency.rows[2][1] == "12 ×1.10 (12.8, 13)"
    assert memory.rows[1] == ("lbctl-tc", "150", "150")


def test_where_we_lose_is_said(results: Results) -> None:
    (sentence,) = tables.verdicts(results.records)
    assert sentence.startswith("lbctl-tc loses to nftables in kernel_memory (MB): 150 against 4")
    assert "1,000 services" in sentence


def test_ratios_decide_before_absolute_times() -> None:
    results = Results()
    # The machine was disturbed while ours was measured; within turns it was faster.
    results.add([summary("nftables", 1, "connect_latency", [14.0], 1.4)])
    results.add([summary("lbctl-tc", 1, "connect_latency", [20.0], 1.1)])
    assert "loses to no rules" in tables.verdicts(results.records)[0]


def test_fewer_per_second_is_a_loss() -> None:
    results = Results()
    results.add([summary("nftables", 1, "request_rate", [100.0], 0.9)])
    results.add([summary("lbctl-tc", 1, "request_rate", [90.0], 0.8)])
    assert "request_rate" in tables.verdicts(results.records)[0]


def test_reasons_are_grouped(results: Results) -> None:
    for peer in ("nftables", "iptables-nft"):
        results.miss(peer, 10, "agent_memory", "no agent")
    table = tables.of_missing(results.about)
    assert table is not None
    assert table.rows == (
        ("ipvs", "everything", "any", "this <kernel> has none"),
        ("nftables, iptables-nft", "agent_memory", "10", "no agent"),
    )


def test_the_page_needs_nothing_beside_it(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    report.write(results, path)
    text = path.read_text()
    assert text.count("<svg") == 3  # two of latency, one of memory
    assert not re.search(r'(src|href)="(https?:|/)', text)
    assert "this &lt;kernel&gt; has none" in text
    assert "lbctl-tc loses to nftables" in text


def test_plots_are_drawn_for_what_there_is(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = {path.name for path in report.write_plots(results, tmp_path)}
    drawn = {"connect_latency", "connect_distribution", "kernel_memory"}
    assert names == {f"{name}.{form}" for name in drawn for form in ("svg", "png")}
    assert plots.draw(results.records, results.about, "svg") == plots.draw(
        results.records, results.about, "svg"
    ), "the same data gives the same file"


def test_markdown_has_the_tables(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    report.write(results, path)
    assert "| lbctl-tc | 12 ×1.10 (12.8, 13) |" in path.read_text()


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\.pdf"):
        report.check_path(Path("report.pdf"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--peers", "none,ipfw"], "there is no 'ipfw'"),
        (["--measures", "speed"], "there is no 'speed'"),
        (["--report", "x.pdf"], "x.pdf ends in neither"),
        (["--services", "1,x"], "is not a list of numbers"),
        (["--services", "0"], "is not a list of numbers"),
        (["--services", "-5"], "is not a list of numbers"),
        (["--cpu", "4096"], "there is no CPU 4096"),
        (["--json", "a", "--resume", "b"], "cannot be combined"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(command, ["bench", *arguments])
    assert done.exit_code == 2
    assert says in done.output


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("precious")
    done = CliRunner().invoke(command, ["bench", "--json", str(path)])
    assert done.exit_code == 2
    assert f"--resume {path}" in done.output
    assert path.read_text() == "precious"
