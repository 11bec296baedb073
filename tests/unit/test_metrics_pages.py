"""/metrics and /configz as a scraper gets them: all that is declared; a fault is an answer."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lbctl.config import agentconfig
from lbctl.config.settings import OPTIONS, Settings
from lbctl.health.answers import Answer, Condition
from lbctl.instruments import Described, Instruments
from lbctl.metrics import configz, families
from lbctl.metrics.pages import Pages
from lbctl.metrics.services import Bounds, ServiceSeries
from lbctl.metrics.snapshot import Snapshot
from lbctl.status import SourceState, StatusRecord, TableUse
from lbctl.troubles import KINDS
from tests.support.fake_tables import FakeTables

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

RECORD = StatusRecord(
    pid=1,
    version="1.2.3",
    node="node1",
    pin_dir="/x",
    ready=True,
    interfaces=3,
    thread_restarts=2,
    source=SourceState("kubernetes", connected=True),
    tables={
        "slots": TableUse(512, 2048, "--endpoints"),
        "flows4": TableUse(512, 1024, "--flows", 4096, 7, 2),
    },
    conditions={"interface": 2},
)
CONDITION = Condition(
    alive=True, fit=True, ready=True, settled=False, eligible=True, updated=0.0, now=0.0
)
SNAPSHOT = Snapshot(
    RECORD,
    CONDITION,
    True,
    True,
    1,
    ("uplink", "pod", "pod"),
    {"forwarded": 5, "future": 1},
    7,
    {"interface": 3},
    {"ring": 7, "listener": 0},
    1,
)


class Rig:
    def __init__(self) -> None:
        self.instruments = Instruments()
        self.snapshot: Snapshot | None = SNAPSHOT
        self.settings = Settings()
        series = ServiceSeries(FakeTables(), lambda: Bounds(10), lambda: None)
        self.pages = Pages(self.instruments, series, self.look, lambda: self.settings)

    def look(self) -> Snapshot:
        if self.snapshot is None:
            raise OSError("map counters: bad descriptor")
        return self.snapshot

    def scrape(self) -> Samples:
        answer = self.pages.metrics()
        assert answer.status == HTTPStatus.OK
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }


@pytest.fixture
def rig() -> Rig:
    return Rig()


def one(
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str
) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_what_the_agent_says_of_itself(rig: Rig) -> None:
    found = rig.scrape()
    assert one(found, "lbctl_build_info", version="1.2.3") == 1
    assert (one(found, "lbctl_ready"), one(found, "lbctl_healthy")) == (0, 1)
    assert one(found, "lbctl_condition", kind="interface") == 2
    assert one(found, "lbctl_condition", kind="maps") == 0
    assert {dict(labels)["kind"] for name, labels in found if name == "lbctl_condition"} == {*KINDS}
    assert one(found, "lbctl_interfaces_missing", role="pod") == 2
    assert one(found, "lbctl_table_pressure_ratio", table="slots") == 0.25
    assert one(found, "lbctl_table_pressure_ratio", table="flows4") == 0.125
    assert one(found, "lbctl_table_room", table="flows4") == 1024
    assert one(found, "lbctl_table_max_entries", table="flows4") == 4096
    assert one(found, "lbctl_flows_evicted_total", table="flows4") == 7
    assert one(found, "lbctl_flows_refused_total", table="flows4") == 2
    assert ("lbctl_flows_refused_total", (("table", "slots"),)) not in found
    assert one(found, "lbctl_corrections_total", what="interface") == 3
    assert one(found, "lbctl_flow_events_lost_total", where="ring") == 7
    assert one(found, "lbctl_flow_event_listeners") == 1
    assert one(found, "lbctl_decisions_total", verdict="translated", reason="forwarded") == 5
    assert one(found, "lbctl_decisions_total", verdict="unknown", reason="future") == 1
    assert one(found, "lbctl_thread_restarts_total") == 2
    assert one(found, "process_resident_memory_bytes") > 0
    assert one(found, "process_cpu_seconds_total") > 0
    assert not [name for name, _ in found if name.endswith("_created")]


def test_counters_and_histograms_of_parts_are_there_from_the_start(rig: Rig) -> None:
    found = rig.scrape()
    assert one(found, "kubeproxy_sync_proxy_rules_duration_seconds_count") == 0
    assert one(found, "kubeproxy_sync_proxy_rules_duration_seconds_bucket", le="0.001") == 0
    assert one(found, "kubeproxy_sync_proxy_rules_service_changes_pending") == 0
    rig.instruments.requests.labels("200", "GET", "api:6443").inc()
    assert (
        one(rig.scrape(), "rest_client_requests_total", code="200", method="GET", host="api:6443")
        == 1
    )


def test_a_scrape_that_fails_is_an_answer(rig: Rig) -> None:
    rig.snapshot = None
    answer = rig.pages.metrics()
    assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
    assert b"bad descriptor" in answer.body
    rig.snapshot = SNAPSHOT
    assert one(rig.scrape(), "lbctl_scrape_faults_total") == 1


def described() -> list[Described]:
    return [*Instruments().described, *families.described()]


def test_every_name_is_declared_once_and_in_base_units() -> None:
    names = [item.name for item in described()]
    assert len(names) == len({*names})
    for item in described():
        assert item.name.split("_")[0] in ("lbctl", "kubeproxy", "rest"), item.name
        assert (item.kind == "counter") == item.name.endswith("_total") or "kubeproxy" in item.name
        assert not set(item.name.split("_")) & {"milliseconds", "ms", "percent", "kb", "mb"}
        assert item.help.endswith("."), item.name


def test_every_family_is_declared_in_families() -> None:
    assert len(families.FAMILIES) > 25
    assert families.BUILD in families.FAMILIES


def body(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.status == HTTPStatus.OK
    found: dict[str, dict[str, Any]] = json.loads(answer.body)
    return found


def test_configz_shows_what_holds_by_the_names_of_files(rig: Rig) -> None:
    rig.settings = Settings(metrics_services=7, socket_lb="all", kubeconfig=Path("/secret"))
    found = body(rig.pages.configz())
    ours, kube_proxy = found[configz.OURS], found[configz.KUBE_PROXY]
    assert ours["metricsServices"] == 7
    assert kube_proxy["metricsBindAddress"] == "127.0.0.1:10249"
    assert {*ours} == {"apiVersion", "kind", *agentconfig.FIELDS}
    named = {
        o.option.kube_proxy for o in OPTIONS.values() if o.option.kube_proxy and not o.option.field
    }
    assert {name.split(".")[0] for name in named} == {*kube_proxy}
    assert kube_proxy["clientConnection"]["kubeconfig"] == "/secret"


def test_the_kubeconfig_of_a_file_is_shown(rig: Rig) -> None:
    rig.settings = Settings(file_kubeconfig=Path("/of-the-file"))
    assert "/of-the-file" in rig.pages.configz().body.decode()


def test_every_value_can_be_shown(rig: Rig) -> None:
    examples = {
        o.option.field: o.option.example
        for o in OPTIONS.values()
        if o.option.field and o.option.example is not None
    }
    said = agentconfig.parse(
        {"apiVersion": agentconfig.API_VERSION, "kind": agentconfig.KIND, **examples}
    )
    rig.settings = Settings(
        **said,
        timeouts=(("established_timeout", 5.0),),
        primary_addresses=(bytes(16),),
        healthz=None,
    )
    found = body(rig.pages.configz())
    shown = {name: found[configz.OURS][name] for name in examples}
    assert shown == {
        name: list(value) if isinstance(value, tuple) else value for name, value in examples.items()
    }
    assert found[configz.KUBE_PROXY]["healthzBindAddress"] == "off"
