"""Series per service and endpoint: what they say, how many there are, what reading them costs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath.tables import Records
from lbctl.metrics import services
from lbctl.metrics.services import Bounds, ServiceSeries
from lbctl.model.names import port_text
from lbctl.model.records import ObjectKey
from tests.support.fake_cells import FakeFlowTable
from tests.support.fake_tables import FakeHash, FakeTables

COUNTED = ("connections", "packets_in", "bytes_in", "packets_out", "bytes_out")
Sample = dict[tuple[str, ...], float]


class Rig:
    """Ports of services on tables without a kernel."""

    def __init__(self, room: int = 64) -> None:
        self.tables = FakeTables(services=room, endpoints=room)
        self.bounds = Bounds(1000)
        # Of flows that live nothing, unless a test says so.
        self.carried: Records | None = self.tables.service_counters.records
        self.series = self.series_by(time.monotonic)

    def series_by(self, clock: Callable[[], float]) -> ServiceSeries:
        return ServiceSeries(self.tables, lambda: self.bounds, lambda: self.carried, clock)

    def port(
        self, number: int, name: str, *counts: int, family: int = 4, port: str = "http"
    ) -> None:
        text = port_text(ObjectKey("default", name), port, "TCP", family).encode()
        table = self.tables.names
        table.put(table.spec.key.pack(service=number), table.spec.value.pack(text=text))
        for field, value in zip(COUNTED, counts, strict=False):
            self.tables.service_counters.records[field][number] = value

    def endpoint(self, number: int, service: int, address: str, flags: int) -> None:
        row = self.tables.backends.records[number]
        row["addr"]["w"] = np.frombuffer(parse_address(address), np.uint32)
        row["port"], row["service"], row["flags"] = socket.htons(8080), service, flags

    def scrape(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        metrics, text = self.series.scrape()
        found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in (*metrics, *text_string_to_metric_families(text)):
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                values = found.setdefault(sample.name, {})
                assert labels not in values, "Prometheus refuses a scrape with one series twice"
                values[labels] = sample.value
        return found


def by_name(samples: dict[tuple[tuple[str, str], ...], float], *labels: str) -> dict[Any, float]:
    wanted = ("name", *labels)
    return {tuple(dict(key)[label] for label in wanted): v for key, v in samples.items()}


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_both_families_of_a_port_are_one_series(rig: Rig) -> None:
    rig.port(1, "web", 5, 10, 1000, 20, 2000)
    rig.port(2, "web", 1, 1, 100, 2, 200, family=6)
    found = rig.scrape()
    (labels,) = found["lbctl_service_connections_total"]
    assert dict(labels) == {
        "namespace": "default",
        "name": "web",
        "port": "http",
        "protocol": "TCP",
    }
    assert by_name(found["lbctl_service_connections_total"]) == {("web",): 6}
    packets = by_name(found["lbctl_service_packets_total"], "direction")
    assert packets == {("web", "in"): 11, ("web", "out"): 22}
    octets = by_name(found["lbctl_service_bytes_total"], "direction")
    assert octets == {("web", "in"): 1100, ("web", "out"): 2200}


def test_counts_beyond_what_a_float_holds_are_whole(rig: Rig) -> None:
    large = (1 << 60) + 1
    rig.port(1, "web", large)
    assert f"}} {large}\n" in rig.series.scrape()[1]


def test_what_living_flows_have_carried_is_that_of_the_last_sweep(rig: Rig) -> None:
    rig.port(1, "web", 5, 10, 1000, 20, 2000)
    rig.port(9, "later", 1, 2, 3, 4, 5)
    rig.carried = rig.tables.service_counters.records[:5].copy()
    rig.carried[1] = 4, 17, 1700, 15, 1500, 0  # flows ended since
    found = rig.scrape()
    packets = by_name(found["lbctl_service_packets_total"], "direction")
    assert packets == {
        ("web", "in"): 17, ("web", "out"): 20, ("later", "in"): 2, ("later", "out"): 4
    }  # fmt: skip
    assert by_name(found["lbctl_service_connections_total"])["web",] == 5
    # An agent that has just begun does not know it, and says nothing rather than less.
    rig.carried = None
    found = rig.scrape()
    assert "lbctl_service_packets_total" not in found
    assert "lbctl_service_bytes_total" not in found
    assert by_name(found["lbctl_service_connections_total"])["web",] == 5


class Untouched(FakeFlowTable):
    """Looking at it costs the more the more flows there are."""

    def snapshots(self, step: int, least: int, *, tuples: bool = True) -> Iterator[Records]:
        raise AssertionError("a walk over all flows")

    at = rooms = snapshots  # type: ignore[assignment]


def test_no_flow_is_looked_at(rig: Rig) -> None:
    rig.tables.flow_tables = (Untouched("4"), Untouched("6"))
    rig.port(1, "web", 100_000)
    rig.tables.service_counters.records["live"][1] = 100_000
    rig.bounds = Bounds(1000, frozenset({"default/web"}))
    assert by_name(rig.scrape()["lbctl_service_active_connections"]) == {("web",): 100_000}


def test_live_counts(rig: Rig) -> None:
    rig.port(1, "web", 5)
    rig.port(2, "web", 5, family=6)
    rig.tables.service_counters.records["live"][[1, 2]] = 3, 4
    rig.bounds = Bounds(1000, frozenset({"default/web"}))
    rig.endpoint(7, 1, "10.0.0.1", consts.BACKEND_SERVING)
    rig.tables.backend_live.records[7] = 3
    found = rig.scrape()
    assert by_name(found["lbctl_service_active_connections"]) == {("web",): 7}
    assert {dict(k)["family"]: v for k, v in found["lbctl_flows"].items()} == {"4": 3, "6": 4}
    active = by_name(found["lbctl_endpoint_active_connections"], "endpoint")
    assert active == {("web", "10.0.0.1:8080"): 3}


def test_an_endpoint_that_left_and_came_back_is_one_series(rig: Rig) -> None:
    rig.port(1, "web")
    rig.port(2, "other")
    rig.bounds = Bounds(1000, frozenset({"default/web"}))
    rig.endpoint(1, 1, "10.0.0.1", 0)
    rig.endpoint(2, 1, "10.0.0.1", consts.BACKEND_SERVING)
    rig.endpoint(3, 1, "fd00::1", 0)
    rig.endpoint(4, 2, "10.0.0.9", consts.BACKEND_SERVING)
    found = by_name(rig.scrape()["lbctl_endpoint_serving"], "endpoint")
    assert found == {("web", "10.0.0.1:8080"): 1, ("web", "[fd00::1]:8080"): 0}


def test_the_busiest_are_shown_if_there_are_too_many(rig: Rig) -> None:
    now = [100.0]
    rig.series = rig.series_by(lambda: now[0])
    rig.bounds = Bounds(2)
    for number in range(1, 6):
        rig.port(number, f"s{number}", 0, 100 * number)
    found = rig.scrape()
    assert by_name(found["lbctl_service_connections_total"]).keys() == {("s4",), ("s5",)}
    assert list(found["lbctl_service_ports_omitted"].values()) == [3]
    # What was busy long ago gives way to what is busy now.
    now[0] += 10 * services.HALF_LIFE_SECONDS
    rig.port(1, "s1", 0, 200)
    assert ("s1",) in by_name(rig.scrape()["lbctl_service_connections_total"])
    # An id that another port has now begins anew.
    rig.port(5, "new", 0, 0)
    assert ("new",) not in by_name(rig.scrape()["lbctl_service_connections_total"])
    rig.bounds = Bounds(0)
    found = rig.scrape()
    assert "lbctl_service_connections_total" not in found
    assert list(found["lbctl_service_ports_omitted"].values()) == [5]


def test_no_local_endpoints_counts_services_by_policy(rig: Rig) -> None:
    rig.port(1, "web")
    rig.port(2, "web", port="other")
    rig.port(3, "fine")
    records = rig.tables.services.records
    records["local"][[1, 2]] = consts.REGION_DROP
    records["flags"][1] = consts.SERVICE_INTERNAL_LOCAL | consts.SERVICE_EXTERNAL_LOCAL
    records["flags"][[2, 3]] = consts.SERVICE_INTERNAL_LOCAL
    found = rig.scrape()["kubeproxy_sync_proxy_rules_no_local_endpoints_total"]
    assert {dict(k)["traffic_policy"]: v for k, v in found.items()} == {
        "internal": 1,
        "external": 1,
    }


@given(
    namespace=st.text(max_size=20),
    name=st.text(max_size=20),
    port=st.text(max_size=20),
)
def test_whatever_names_hold_the_text_can_be_parsed(namespace: str, name: str, port: str) -> None:
    rig = Rig()
    text = port_text(ObjectKey(namespace, name), port, "TCP", 4).encode()[:160].strip(b"\0")
    table = rig.tables.names
    table.put(table.spec.key.pack(service=1), table.spec.value.pack(text=text))
    assert len(rig.scrape()["lbctl_service_connections_total"]) == 1


class Counting(FakeHash):
    """How many batches it was asked for."""

    calls = 0

    def _arrays(self, items: list[tuple[bytes, bytes]]) -> tuple[Records, Records]:
        self.calls += 1
        return super()._arrays(items)

    def get(self, key: bytes) -> bytes | None:
        raise AssertionError("a call for each service")


def test_no_call_is_made_per_service() -> None:
    rig = Rig(room=5000)
    known = rig.tables.names
    counting = Counting("names", known.spec.key, known.spec.value, 5000)
    counting.batch = 4096
    rig.tables.names = counting
    for number in range(1, 5000):
        rig.port(number, f"s{number}")
    rig.bounds = Bounds(5000, frozenset({"default/s1"}))
    found = rig.scrape()
    assert len(found["lbctl_service_packets_total"]) == 2 * 4999
    assert counting.calls == 2
