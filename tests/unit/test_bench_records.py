"""Records of a benchmark: percentiles, the file of JSON lines, what is missing and why."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lbctl.bench.measures import paired
from lbctl.bench.records import Distribution, Record, Results, about_path, read_records, summary
from lbctl.errors import ConfigError

FIELDS = ["peer", "services", "measure", "unit", "p50", "p90", "p99", "n", "ratio_to_floor"]


def test_a_line_has_exactly_the_fields_that_were_promised(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Results(path).add([summary("nftables", 10, "connect_latency", [1.0, 2.0], 1.4)])
    (line,) = path.read_text().splitlines()
    assert list(msgspec.json.decode(line)) == FIELDS


def test_percentiles_of_a_latency() -> None:
    record = summary("none", 1, "connect_latency", np.arange(101), 1.0)
    assert (record.p50, record.p90, record.p99, record.n) == (50, 90, 99, 101)
    assert record.unit == "us"


def test_percentiles_of_a_rate_are_on_the_unfavourable_side() -> None:
    record = summary("none", 1, "connection_rate", np.arange(101))
    assert (record.p50, record.p90, record.p99) == (50, 10, 1)
    assert record.ratio_to_floor is None


def test_ratios_are_within_turns() -> None:
    # The machine was three times slower in the second turn, for both.
    assert paired([12.0, 36.0, 12.0], [10.0, 30.0, 10.0]) == pytest.approx(1.2)


def test_resuming_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = Results(path)
    first.add([summary("none", 1, "load_time", [1.0])])
    first.about.distributions.append(Distribution("none", 1, (1.0, 2.0)))
    first.miss("ipvs", 0, "all", "not here")
    first.save_about()
    second = Results.resume(path)
    second.add([summary("none", 1, "load_time", [9.0]), summary("none", 10, "load_time", [2.0])])
    assert [(r.services, r.p50) for r in read_records(path)] == [(1, 1.0), (10, 2.0)]
    assert second.about.distributions == [Distribution("none", 1, (1.0, 2.0))]
    assert [missing.peer for missing in second.about.missing] == ["ipvs"]
    second.forget_reasons(["nftables"], [1])
    assert second.about.missing, "that peer is not measured again"
    second.forget_reasons(["ipvs"], [1])
    assert second.about.missing == []


def test_resuming_nothing_starts(tmp_path: Path) -> None:
    assert Results.resume(tmp_path / "none.jsonl").records == []


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    good = msgspec.json.encode(Record("none", 1, "load_time", "s", 1, 1, 1, 1)).decode()
    path.write_text(f'{good}\n{{"peer": "none"}}\n')
    with pytest.raises(ConfigError, match="line 2"):
        Results.resume(path)


def test_about_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text("")
    about_path(path).write_text('{"missing": 3}')
    with pytest.raises(ConfigError, match="about"):
        Results.resume(path)


def test_a_reason_is_kept_once() -> None:
    results = Results()
    for _ in range(2):
        results.miss("ipvs", 0, "all", "not here")
    assert len(results.about.missing) == 1
