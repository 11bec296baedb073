"""A real Prometheus scrapes an agent that follows an API server: no panel is empty."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from lbctl.cli.top import Screen
from lbctl.inspect.opened import open_instance
from lbctl.inspect.top import Looks
from lbctl.lab import objects
from lbctl.lab.cluster import Lab
from tests.lab.support import pictures, prometheus
from tests.lab.support.labs import (
    FAMILIES,
    PORT,
    PORTS,
    TCP,
    UDP,
    Responder,
    addresses,
    ask,
    connected,
    endpoint,
    inside,
)
from tests.lab.support.prometheus import Prometheus, program
from tests.lab.test_live_api import START, Cluster
from tests.support import monitoring
from tests.support.apiserver import ApiServer

pytestmark = pytest.mark.lab

CONNECTIONS = 10  # in each family
BOUND = 60.0
# What the stock dashboard of kube-proxy asks for, by what Kubernetes documents of these metrics.
STOCK = (
    'sum(up{job="kube-proxy"})',
    'rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job="kube-proxy"}[1m])',
    "histogram_quantile(0.99, rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket[1m]))",
    "rate(kubeproxy_network_programming_duration_seconds_count[1m])",
    "histogram_quantile(0.99, sum by (instance, le) "
    "(rate(kubeproxy_network_programming_duration_seconds_bucket[1m])))",
    'sum(rate(rest_client_requests_total{job="kube-proxy",code=~"2.."}[1m]))',
    "histogram_quantile(0.99, sum by (verb, host, le) "
    '(rate(rest_client_request_duration_seconds_bucket{verb="GET"}[1m])))',
    'process_resident_memory_bytes{job="kube-proxy"}',
    'rate(process_cpu_seconds_total{job="kube-proxy"}[1m])',
    "sum(kubeproxy_sync_proxy_rules_no_local_endpoints_total) by (traffic_policy)",
    "time() - kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
)


@pytest.fixture(scope="module")
def cluster(
    make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """An agent on node1 that follows an API server there, and services with servers."""
    program("prometheus"), program("promtool")
    lab = make_lab("prometheus", nodes=2, pods=2, agent=False)
    with Responder() as responder, inside(lab, "node1", ApiServer) as api:
        responder.serve(lab, [pod.name for pod in lab.pods])
        api.put(*nodes(lab))
        directory = tmp_path_factory.mktemp("cluster")
        made = Cluster(lab, api, directory, ("-v", "--events", "on"))
        made.put({"web": ["pod2", "pod3"], "nobody": []})
        made.start_agent()
        try:
            made.wait_for(lambda said: said.ready, START)
            yield made
        finally:
            made.stop_agent()


@pytest.fixture(scope="module")
def scraped(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(cluster.lab, "node1", tmp_path_factory.mktemp("prometheus")) as made:
        yield made


def nodes(lab: Lab, zone: str = "") -> list[objects.JsonObject]:
    """Ready ones."""
    found = objects.nodes(lab.state.topology)
    for node in found:
        node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
        if zone:
            node["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone
    return found


def use(cluster: Cluster) -> None:
    """Connections that are served, and some that are not; and a change of endpoints."""
    for family in (0, 1):
        for _ in range(CONNECTIONS):
            with connected(cluster.lab, "pod1", addresses("web")[family], TCP) as sock:
                ask(sock, "hello")
        with connected(cluster.lab, "pod1", addresses("web")[family], UDP) as sock:
            ask(sock, "hello")
        refused(cluster.lab, FAMILIES[family], addresses("nobody")[family])


def refused(lab: Lab, family: socket.AddressFamily, address: str) -> None:
    def connect() -> None:
        with socket.socket(family, TCP) as sock, pytest.raises(ConnectionRefusedError):
            sock.connect((address, PORT))

    inside(lab, "pod1", connect)


def test_what_was_done_is_what_is_counted(cluster: Cluster, scraped: Prometheus) -> None:
    def connections() -> float:
        (found,) = scraped.query(
            'sum(lbctl_service_connections_total{namespace="default",name="web",protocol="TCP"})'
        )
        return float(found["value"][1])

    before = connections()
    use(cluster)
    scraped.until(lambda: connections() == before + 2 * CONNECTIONS, BOUND)
    scraped.until(
        lambda: bool(
            scraped.query('lbctl_decisions_total{verdict="refused",reason="no_endpoint"} >= 2')
        ),
        BOUND,
    )
    assert scraped.query("lbctl_ready == 1")
    assert scraped.query('lbctl_source_connected{source="kubernetes"} == 1')
    assert scraped.query("lbctl_services == 2")


def test_what_changes_is_measured(cluster: Cluster, scraped: Prometheus) -> None:
    """The endpoint controller says when a pod changed."""
    count = "kubeproxy_network_programming_duration_seconds_count"
    (before,) = scraped.query(count)
    put_slices(cluster, ["pod2"])
    scraped.until(lambda: bool(scraped.query(f"{count} > {before['value'][1]}")), BOUND)
    assert scraped.query("kubeproxy_sync_proxy_rules_endpoint_changes_total > 0")
    assert scraped.query("kubeproxy_sync_proxy_rules_endpoint_changes_pending == 0")
    assert scraped.query("kubeproxy_sync_partial_proxy_rules_duration_seconds_count > 0")
    assert scraped.query("kubeproxy_sync_full_proxy_rules_duration_seconds_count > 0")


def put_slices(cluster: Cluster, members: list[str]) -> None:
    found = [endpoint(cluster.lab, member) for member in members]
    for item in cluster.lab.service("web", PORTS, found):
        if item["kind"] == "EndpointSlice":
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            key = "endpoints.kubernetes.io/last-change-trigger-time"
            item["metadata"]["annotations"] = {key: now}
        cluster.api.put(item)


def filled_in(query: str) -> str:
    """With what Grafana would put in the places of its variables."""
    return query.replace("$__rate_interval", "30s").replace("$instance", ".*")


def test_no_panel_is_empty(cluster: Cluster, scraped: Prometheus) -> None:
    for path in ("/healthz", "/livez"):
        assert prometheus.get(cluster.lab, "node1", 10256, path)[0] == 200
    use(cluster)
    put_slices(cluster, ["pod2", "pod3"])
    cluster.api.put(*nodes(cluster.lab, "moon"))  # another zone: every service is looked at
    cluster.api.drop()  # watches begin anew
    waiting = [filled_in(query.text) for query in monitoring.of_panels()] + [*STOCK]
    seen: set[str] = set()

    def all_have_values() -> bool:
        seen.update(query for query in waiting if query not in seen and has_value(scraped, query))
        return len(seen) == len({*waiting})

    try:
        scraped.until(all_have_values, BOUND)
    except AssertionError:
        assert not [query for query in waiting if query not in seen]
        raise


def has_value(scraped: Prometheus, query: str) -> bool:
    """A number: percentiles of nothing are none."""
    return any(series["value"][1] != "NaN" for series in scraped.query(query))


def test_what_rules_select_has_values_and_none_of_them_fires(scraped: Prometheus) -> None:
    for query in monitoring.of_rules():
        for name, matchers in monitoring.selected(query.text):
            labels = ",".join(f'{label}=~"{value}"' for label, value in matchers.items())
            assert scraped.query(f"{name}{{{labels}}}"), f"{query.where}: {name}{{{labels}}}"
    scraped.until(lambda: {*scraped.health_of_rules().values()} == {"ok"}, BOUND)
    assert "firing" not in scraped.alerts().values()


def test_a_conflict_is_a_condition_and_an_event(cluster: Cluster, scraped: Prometheus) -> None:
    """A service that asks for what another one has, told with both their names."""
    for item in cluster.lab.service("late", PORTS, []):
        if item["kind"] == "Service":
            item["spec"] |= {"externalIPs": [addresses("web")[0]]}
            item["metadata"] |= {"creationTimestamp": "2026-01-02T00:00:00Z", "uid": str(uuid4())}
            uid = item["metadata"]["uid"]
            cluster.api.put(item)
    scraped.until(lambda: bool(scraped.query('lbctl_condition{kind="services"} == 1')), BOUND)
    scraped.until(lambda: len(cluster.api.events_written) > 0, BOUND)
    about = [e for e in cluster.api.events_written.values() if e["regarding"]["name"] == "late"]
    (event,) = about
    assert (event["reason"], event["regarding"]["uid"]) == ("AddressTaken", uid)
    assert "default/late" in event["note"]
    assert "default/web has" in event["note"]
    scraped.until(
        lambda: bool(scraped.query('lbctl_kubernetes_events_total{result="written"} >= 1')), BOUND
    )
    cluster.api.delete("Service", "late", "default")
    scraped.until(lambda: bool(scraped.query('lbctl_condition{kind="services"} == 0')), BOUND)


def test_promtool_has_nothing_to_say(cluster: Cluster) -> None:
    status, text = prometheus.get(cluster.lab, "node1", prometheus.METRICS, "/metrics")
    assert status == 200
    told = promtool(["check", "metrics"], text)
    # These are kube-proxy's own names, which break the rules for names.
    lines = [line for line in told.splitlines() if not line.startswith("kubeproxy_")]
    assert lines == []
    assert "SUCCESS" in promtool(["check", "rules", str(monitoring.RULES)])


def promtool(arguments: list[str], text: bytes = b"") -> str:
    done = subprocess.run(
        [program("promtool"), *arguments], input=text, capture_output=True, timeout=60, check=False
    )
    return re.sub(r"(?m)^\s*\n", "", (done.stdout + done.stderr).decode())


def test_the_pages_beside(cluster: Cluster, tmp_path: Path) -> None:
    def page(path: str) -> tuple[int, bytes]:
        return prometheus.get(cluster.lab, "node1", prometheus.METRICS, path)

    assert page("/proxyMode") == (200, b"lbctl")
    status, body = page("/configz")
    assert status == 200
    assert b'"metricsBindAddress":"127.0.0.1:10249"' in body
    assert page("/healthz")[0] == 404


PICTURED = (
    *("New connections a second", "Decisions by what became of the packet"),
    *("Dropped and refused, by reason", "Packets", "Bytes to clients"),
    *("Network programming, 99th percentile", "Syncs a second", "Memory"),
    "How full the maps are",
)


def test_pictures(cluster: Cluster, scraped: Prometheus, tmp_path: Path) -> None:
    """The dashboard's panels and `top` can be drawn; for docs/, of two minutes."""
    seconds = 120.0 if pictures.wanted() else 3.0
    cluster.put({"cart": ["pod2"], "search": ["pod3", "pod4"]})
    cluster.wait_programmed({"cart": ["pod2"], "search": ["pod3", "pod4"]})
    looks = Looks("services")
    with open_instance(cluster.lab.pin_dir("node1")) as instance:
        found = looks.look(instance, time.monotonic())
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            busy(cluster, time.monotonic() - began)
            found = looks.look(instance, time.monotonic())
        screen = Screen(instance, "services", "bytes", "", 1.0)
        directory = pictures.directory(tmp_path)
        pictures.draw_screen(screen.shown(found), "lbctl top", directory / "top.svg")
    drawn = {panel["title"]: panel for panel in monitoring.panels()}

    def values(query: str) -> list[dict[str, Any]]:
        return scraped.ranged(filled_in(query), seconds)

    pictures.draw_panels([drawn[title] for title in PICTURED], values, directory / "dashboard.png")
    assert "default/web:tcp/TCP/v4" in (directory / "top.svg").read_text().replace("&#160;", " ")
    assert (directory / "dashboard.png").stat().st_size > 10_000


def busy(cluster: Cluster, passed: float) -> None:
    """A second of traffic, more and less of it; endpoints change every ten seconds, and somebody
    calls a service that has none for a while."""
    level = 2 + 2 * math.sin(passed / 9)
    for name, share in (("web", 4), ("cart", 2), ("search", 1)):
        for turn in range(round(level * share)):
            with connected(cluster.lab, "pod1", addresses(name)[turn % 2], TCP) as sock:
                for _ in range(5):
                    ask(sock, "hello" * share)
    if int(passed / 30) % 2:
        refused(cluster.lab, FAMILIES[0], addresses("nobody")[0])
    if int(passed) % 10 == 0:
        put_slices(cluster, ["pod2", "pod3"] if int(passed) % 20 else ["pod2"])
    time.sleep(0.5)
