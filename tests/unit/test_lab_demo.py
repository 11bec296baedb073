"""The demo's examples and its way of counting."""

from __future__ import annotations

import pytest

from lbctl.addresses import format_address
from lbctl.demo.outcome import Outcome, Phase, show_spread, show_summary
from lbctl.demo.services import CLIENT, DNS, WEB, Example, examples_directory, ways
from lbctl.lab import topology
from lbctl.lab.traffic.report import Report
from lbctl.model.records import ObjectKey
from lbctl.sources.documents import load_manifests

PLAN = topology.plan("demo", nodes=2, pods=3, cni="route")


@pytest.mark.parametrize("example", [WEB, DNS], ids=["web", "dns"])
def test_examples_name_pods_of_the_lab_where_they_run(example: Example) -> None:
    found = load_manifests(examples_directory()).services[ObjectKey("default", example.name)]
    listed = {
        (format_address(endpoint.address), endpoint.node)
        for part in found.slices
        for endpoint in part.endpoints
    }
    pods = [pod for pod in PLAN.pods if pod.name in example.pods]
    assert listed == {(address, pod.node) for pod in pods for address in pod.addresses}
    assert {pod.node for pod in pods} == {"node1", "node2"}


def test_both_services_are_asked_over_both_families_by_a_pod_that_serves_neither() -> None:
    assert [way.target for way in ways()] == [
        "10.96.0.80:80",
        "[fd00:10:96::80]:80",
        "10.96.0.53:53",
        "[fd00:10:96::53]:53",
    ]
    assert CLIENT not in (*WEB.pods, *DNS.pods)


def test_the_summary_counts_what_was_lost(capsys: pytest.CaptureFixture[str]) -> None:
    good = Phase("calm", [("web", Report("10.96.0.80:80", 5, 5, servers={"pod1": 3, "pod2": 2}))])
    bad = Phase("storm", [("web", Report("t", 9, 7, {"timeout": 2}, notes=["1.0 s: timeout"]))])
    outcome = Outcome([good, bad])

    show_summary(outcome)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["requests: 14", "lost: 2"]
    assert "failed: storm: web: 2 of 9 lost (timeout 2), first at 1.0 s: timeout" in lines
    assert not outcome.good

    show_summary(Outcome([good]))
    assert capsys.readouterr().out.splitlines()[-1] == "lost: 0"
    assert Outcome([good]).good


def test_nothing_sent_is_not_nothing_lost() -> None:
    assert not Outcome([]).good
    assert not Outcome([Phase("calm")]).good


def test_an_unexpected_answer_fails_the_demo() -> None:
    phase = Phase("calm", [("web", Report("t", 1, 1))], failures=["answered by pod2"])
    assert not Outcome([phase]).good


def test_the_spread_has_a_column_per_server(capsys: pytest.CaptureFixture[str]) -> None:
    show_spread(Phase("x", [("web", Report("t", 5, 5, servers={"pod1": 3, "pod2": 2}))]))
    title, row = capsys.readouterr().out.splitlines()[3:5]
    assert title.split() == ["service", "address", "requests", "pod1", "pod2", "lost"]
    assert row.split() == ["web", "t", "5", "3", "2", "0"]
