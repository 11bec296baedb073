"""deploy/monitoring: what rules and panels name exists, with the labels that they expect."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from lbctl.datapath.reasons import SENTENCES, VERDICTS
from lbctl.instruments import Described, Instruments
from lbctl.metrics import families
from lbctl.troubles import KINDS
from tests.support import monitoring
from tests.support.monitoring import Query

DESCRIBED = {item.name: item for item in (*Instruments().described, *families.described())}
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
OF_TARGETS = {"instance", "job", "le"}
VALUES = {
    "kind": {*KINDS, "Service", "EndpointSlice", "Node"},
    "reason": {*SENTENCES},
    "verdict": {*VERDICTS},
    "role": {"uplink", "pod"},
    "direction": {"in", "out"},
}
QUERIES = [*monitoring.of_rules(), *monitoring.of_panels()]


def declared(name: str) -> Described | None:
    """Of a histogram, by the names of its parts."""
    if name in DESCRIBED:
        return DESCRIBED[name]
    found = DESCRIBED.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return found if found and found.kind == "histogram" else None


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_what_a_query_names_exists(query: Query) -> None:
    found = [*monitoring.selected(query.text)]
    assert found or 'up{job="kube-proxy"' in query.text
    for name, matchers in found:
        if name in PROCESS:
            continue
        metric = declared(name)
        assert metric, name
        assert {*matchers} <= {*metric.labels} | OF_TARGETS
        for label, value in matchers.items():
            assert label not in VALUES or {*value.split("|")} <= VALUES[label], f"{label}={value}"
        if metric.kind == "counter":
            assert re.search(rf"(rate|increase)\({name}", query.text), "counters are asked by rate"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_labels_that_are_summed_by_exist(query: Query) -> None:
    labels = {
        label
        for name, _ in monitoring.selected(query.text)
        if (m := declared(name))
        for label in m.labels
    }
    for group in re.findall(r"\bby \(([^)]*)\)", query.text):
        assert {part.strip() for part in group.split(",")} <= labels | OF_TARGETS


def test_legends_show_labels_that_the_query_leaves() -> None:
    for panel in monitoring.panels():
        for target in panel["targets"]:
            shown = {*re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
            grouped = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            if grouped:
                assert shown <= {part.strip() for group in grouped for part in group.split(",")}
            else:
                assert shown <= {"instance"}


def test_each_rule_says_what_to_do() -> None:
    for rule in monitoring.rules():
        assert {*rule["annotations"]} == {"summary", "description"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
    names = [rule["alert"] for rule in monitoring.rules()]
    assert len({*names}) == len(names)


def test_every_panel_has_a_place_of_its_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in monitoring.panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells


def test_both_ways_of_scraping_ask_our_pods_by_kube_proxys_job() -> None:
    (monitor,) = yaml.safe_load_all((monitoring.DIRECTORY / "podmonitor.yaml").read_text())
    config = yaml.safe_load((monitoring.DIRECTORY / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    assert job["job_name"] == "kube-proxy"
    assert config["rule_files"] == [monitoring.RULES.name]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    rules: list[dict[str, Any]] = endpoint["relabelings"]
    assert {"targetLabel": "job", "replacement": "kube-proxy"} in rules
    for addresses in (
        [r["replacement"] for r in rules if r["targetLabel"] == "__address__"],
        [
            r["replacement"]
            for r in job["relabel_configs"]
            if r.get("target_label") == "__address__"
        ],
    ):
        assert addresses == ["$1:10249", "[$1]:10249"]
