"""The documents show what the saved results say, and say what is missed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lbctl.bench.records import PacketCost, Record, Results
from tests.perf.figures import AGENT, BENCH, DOCUMENTS, rendered
from tests.perf.support.figures import TABLES, goals, wins
from tests.perf.support.saved_results import Data
from tests.perf.support.scale_result import Result


def data(*records: Record, packets: dict[str, float] | None = None, agent: float = 1.0) -> Data:
    results = Results()
    results.add(records)
    results.about.packets = [PacketCost(name, ns, ns) for name, ns in (packets or {}).items()]
    started = Result(10_000, 10, "start until all programmed", "s", [agent])
    return Data(results, [started])


def record(peer: str, measure: str, value: float, ratio: float | None = None) -> Record:
    return Record(peer, 1, measure, "us", value, value, value, 1, ratio)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_as_their_results_make_them(path: Path) -> None:
    text = path.read_text()
    assert rendered(text, Data.read(BENCH, AGENT)) == text, (
        "python -m tests.perf.figures --no-measuring"
    )


def test_every_table_has_a_place() -> None:
    text = "".join(path.read_text() for path in DOCUMENTS)
    assert {name for name in TABLES if f"<!-- figures: {name} -->\n" in text} == set(TABLES)


@pytest.mark.parametrize(("value", "met"), [(1.0, "yes"), (1.01, "**no**")])
def test_a_missed_goal_is_said_to_be(value: float, met: str) -> None:
    (row,) = [
        line
        for line in goals(data(agent=value)).splitlines()
        if "start, 10,000" in line and "restart" not in line and "first" not in line
    ]
    assert row.endswith(f" {met} |")


def test_the_dearest_kind_of_packet_decides() -> None:
    packets = {"established, IPv4": 20.0, "established reply, IPv4": 30.0}
    (row,) = [line for line in goals(data(packets=packets)).splitlines() if "one flow" in line]
    assert "| 30 ns | **no** |" in row


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    (row,) = [line for line in goals(data()).splitlines() if "a new flow" in line]
    assert row.endswith("| – | – |")


@pytest.mark.parametrize(
    ("tc", "nftables", "winner"),
    [(1.1, 1.3, "**lbctl**"), (1.3, 1.31, "nobody"), (1.4, 1.3, "**nftables**")],
)
def test_who_is_clearly_better_wins(tc: float, nftables: float, winner: str) -> None:
    found = wins(
        data(
            record("none", "connect_latency", 10, 1.0),
            record("hooks", "connect_latency", 10.5, 1.05),
            record("lbctl-tc", "connect_latency", 10 * tc, tc),
            record("nftables", "connect_latency", 10 * nftables, nftables),
        )
    )
    assert found.splitlines()[-1].endswith(f"| {winner} |")


def test_who_adds_least_wins_also_below_nothing() -> None:
    added = {"none": 0.1, "nftables": 1.6, "lbctl-tc": 0.4, "lbctl-fast": -0.3}
    found = wins(data(*(record(peer, "roundtrip_added", us, 1.0) for peer, us in added.items())))
    assert found.splitlines()[-1].endswith("| **lbctl-fast** |")


def test_ours_alone_are_no_competition() -> None:
    found = wins(data(*(record(p, "agent_memory", 70) for p in ("lbctl-tc", "lbctl-fast"))))
    assert found.splitlines()[-1].endswith("| – |")


def test_saved_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    result = Result(1, 10, "kernel maps", "MB", [8.5, 8.7])
    (tmp_path / "agent").write_bytes(msgspec.json.encode(result) + b"\n")
    assert Data.read(tmp_path / "none", tmp_path / "agent").median(1, "kernel maps") == 8.6
