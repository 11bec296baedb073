"""The Kubernetes source against a server that lists, watches and misbehaves."""

from __future__ import annotations

import select
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apiserver import ApiServer
from k8s_objects import endpoint, endpoint_slice, node, port, service

from lbctl.errors import ConfigError
from lbctl.model import ObjectKey, ServiceObjects
from lbctl.sources.kubernetes import KubernetesSource
from lbctl.sources.objects import Update
from lbctl.sources.watch import Backoff, Settings

PATIENCE = 20.0
QUICK = Settings(
    page_size=3,
    watch_seconds=30.0,
    grace_seconds=1.0,
    list_seconds=1.0,
    backoff_first=0.02,
    backoff_limit=0.1,
)
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


class Follower:
    """A consumer that keeps what it was told."""

    def __init__(self, source: KubernetesSource) -> None:
        self.source = source
        self.services: dict[ObjectKey, ServiceObjects] = {}
        self.last: Update | None = None
        self.updates = 0

    def until(self, condition: Callable[[], bool]) -> None:
        """Take updates until the condition holds."""
        for _ in range(int(PATIENCE / 0.05)):
            if condition():
                return
            self.take(0.05)
        pytest.fail(f"never happened; status {self.source.status()}")

    def take(self, timeout: float) -> None:
        update = self.source.wait(timeout)
        if update is None:
            return
        self.last = update
        self.updates += 1
        for key, value in update.services.items():
            if value.service is None:
                self.services.pop(key, None)
            else:
                self.services[key] = value

    def names(self) -> list[str]:
        return sorted(key.name for key in self.services)

    def endpoints(self, name: str = "svc1") -> int:
        found = self.services.get(ObjectKey("ns1", name))
        return sum(len(s.endpoints) for s in found.slices) if found else -1


Follow = Callable[..., Follower]


@pytest.fixture
def follow(server: ApiServer, tmp_path: Path) -> Iterator[Follow]:
    """Start a source and wait until it is in step."""
    started: list[KubernetesSource] = []

    def start(settings: Settings = QUICK, *, wait: bool = True, **options: Any) -> Follower:
        source = KubernetesSource(
            "worker-1", kubeconfig=server.kubeconfig(tmp_path, **options), settings=settings
        )
        source.start()
        started.append(source)
        follower = Follower(source)
        if wait:
            follower.until(lambda: source.status().synced and source.status().connected)
            follower.until(lambda: follower.last is not None and follower.last.synced)
        return follower

    yield start
    for source in started:
        source.stop()


def _has_endpoints(follower: Follower, count: int) -> bool:
    return follower.endpoints() == count


def _fill(server: ApiServer) -> None:
    server.put(
        node(zone="zone-a"),
        node("worker-2"),
        service(),
        endpoint_slice(endpoints=[endpoint("10.0.0.1")]),
    )


def test_lists_then_follows(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    assert follower.names() == ["svc1"]
    assert follower.endpoints() == 1
    assert follower.last is not None
    assert follower.last.node is not None
    assert follower.last.node.zone == "zone-a"
    assert follower.last.complete

    server.put(endpoint_slice(endpoints=[endpoint("10.0.0.1"), endpoint("10.0.0.2")]))
    follower.until(lambda: follower.endpoints() == 2)
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])
    server.delete("Service", "svc1")
    follower.until(lambda: follower.names() == ["svc2"])


def test_asks_as_kube_proxy_does(server: ApiServer, follow: Follow) -> None:
    label = {"service.kubernetes.io/service-proxy-name": "other"}
    server.put(service("mine"), service("theirs", labels=label), node())
    follower = follow()
    assert follower.names() == ["mine"]
    follower.until(lambda: sum("watch" in query for _, query in server.requests) == 3)
    for path, query in server.requests:
        if path.endswith("nodes"):
            assert query["fieldSelector"] == "metadata.name=worker-1"
        else:
            assert query["labelSelector"] == (
                "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"
            )
        if "watch" in query:
            assert query["allowWatchBookmarks"] == "true"
            assert int(query["resourceVersion"]) == server.version


def test_nothing_is_handed_out_before_every_kind_was_listed(
    server: ApiServer, follow: Follow
) -> None:
    _fill(server)
    server.stall_lists.add(SLICES)
    follower = follow(wait=False)
    follower.until(lambda: [p for p, _ in server.requests].count("/api/v1/services") == 2)
    follower.take(0.2)
    assert follower.services == {}
    assert not follower.source.status().synced
    server.stall_lists.clear()
    follower.until(lambda: follower.endpoints() == 1)
    assert follower.source.status().complete


def test_reads_all_pages(server: ApiServer, follow: Follow) -> None:
    server.put(*(service(f"svc{i}") for i in range(8)))
    follower = follow()
    assert len(follower.names()) == 8
    pages = [q for p, q in server.requests if p == "/api/v1/services" and "watch" not in q]
    assert [q["limit"] for q in pages] == ["3", "3", "3"]
    assert "continue" in pages[-1]


def test_expired_page_token_takes_the_whole_list(server: ApiServer, follow: Follow) -> None:
    server.put(*(service(f"svc{i}") for i in range(8)))
    server.lose_pages = 1
    follower = follow()
    assert len(follower.names()) == 8
    unpaged = [q for p, q in server.requests if "limit" not in q and "watch" not in q]
    assert len(unpaged) == 1


@pytest.mark.parametrize("as_event", [True, False])
def test_expired_version_lists_again(server: ApiServer, follow: Follow, as_event: bool) -> None:
    """What vanished while no one watched goes, what stayed is not touched."""
    server.put(service("stays"), service("goes"))
    follower = follow()
    server.expire(as_event=as_event)
    server.forget("Service", "goes")
    server.drop()
    follower.until(lambda: follower.names() == ["stays"])
    assert follower.last is not None
    assert ObjectKey("ns1", "stays") not in follower.last.services


def test_dropped_connection_resumes_where_it_was(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    lists = sum("watch" not in q for _, q in server.requests)
    for number in range(2, 5):
        server.drop()
        server.put(endpoint_slice(endpoints=[endpoint(f"10.0.0.{i}") for i in range(number)]))
        follower.until(partial(_has_endpoints, follower, number))
    assert sum("watch" not in q for _, q in server.requests) == lists


def test_stalled_connection_is_noticed(server: ApiServer, follow: Follow) -> None:
    """Open, but nothing comes: given up after the time the server itself would have ended it."""
    _fill(server)
    brief = Settings(watch_seconds=0.2, grace_seconds=0.3, backoff_first=0.02, backoff_limit=0.1)
    server.stall()
    follower = follow(brief)
    watches = sum("watch" in q for _, q in server.requests)
    server.put(endpoint_slice(endpoints=[endpoint("10.0.0.1"), endpoint("10.0.0.2")]))
    follower.until(lambda: sum("watch" in q for _, q in server.requests) > watches + 3)
    assert "timed out" in follower.source.status().last_error or follower.updates
    assert follower.endpoints() in (1, 2)
    server.resume()
    follower.until(lambda: follower.endpoints() == 2)


def test_api_away_keeps_everything_and_says_so(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    server.go_away()
    follower.until(lambda: follower.last is not None and not follower.last.status.connected)
    assert follower.names() == ["svc1"]
    assert follower.last is not None
    assert server.url in follower.last.status.last_error
    server.put(service("svc2"))
    follower.take(0.3)
    assert follower.names() == ["svc1"]
    server.resume()
    follower.until(lambda: follower.names() == ["svc1", "svc2"])
    follower.until(lambda: follower.source.status().connected)
    assert follower.source.status().last_error == ""


def test_bookmarks_move_the_version(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    for kind in ("Service", "EndpointSlice", "Node"):
        server.bookmark(kind)
    server.put(service("svc2"))
    follower.until(lambda: "svc2" in follower.names())
    oldest = server.version - 4

    def resumed() -> bool:
        server.drop()
        follower.take(0.1)
        versions = [int(q["resourceVersion"]) for _, q in server.requests if "watch" in q]
        return min(versions[-3:]) > oldest

    follower.until(resumed)


def test_duplicates_and_equal_objects_change_nothing(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    follower.until(lambda: follower.source.wait(0.2) is None)
    server.repeat("Service")
    server.put(endpoint_slice(endpoints=[endpoint("10.0.0.1")]))  # only its version is new
    server.repeat("EndpointSlice", 2)
    assert follower.source.wait(0.5) is None
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])


def test_kinds_in_any_order(server: ApiServer, follow: Follow) -> None:
    """A slice before its service, and a service deleted before its slice."""
    server.put(node())
    follower = follow()
    server.put(endpoint_slice(endpoints=[endpoint("10.0.0.1")]))
    follower.until(lambda: follower.last is not None and bool(follower.last.services))
    assert follower.names() == []
    server.put(service())
    follower.until(lambda: follower.endpoints() == 1)
    server.delete("Service", "svc1")
    follower.until(lambda: follower.names() == [])
    server.delete("EndpointSlice", "svc1-1")
    server.put(service("end"))
    follower.until(lambda: follower.names() == ["end"])


def test_slice_moves_between_services(server: ApiServer, follow: Follow) -> None:
    server.put(service("svc1"), service("svc2"), endpoint_slice(endpoints=[endpoint("10.0.0.1")]))
    follower = follow()
    assert (follower.endpoints("svc1"), follower.endpoints("svc2")) == (1, 0)
    server.put(endpoint_slice(of="svc2", endpoints=[endpoint("10.0.0.1")]))
    follower.until(lambda: (follower.endpoints("svc1"), follower.endpoints("svc2")) == (0, 1))


def test_undecodable_object_is_reported_and_skipped(server: ApiServer, follow: Follow) -> None:
    bad = service("bad", ports=[{**port(), "port": "eighty"}])
    server.put(service("good"), bad)
    follower = follow()
    assert follower.names() == ["good"]
    status = follower.source.status()
    assert status.synced
    assert not status.complete
    assert status.problems == ("Service ns1/bad: spec.ports[0].port: expected int, got str",)

    server.put(service("bad"))
    follower.until(lambda: follower.names() == ["bad", "good"])
    assert follower.source.status().complete


def test_object_that_becomes_undecodable_stays_as_it_was(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    server.put(endpoint_slice(endpoints=[endpoint("10.0.0.300")]))
    follower.until(lambda: bool(follower.source.status().problems))
    (problem,) = follower.source.status().problems
    assert problem == (
        "EndpointSlice ns1/svc1-1: endpoints[0].addresses[0]: '10.0.0.300' is not an IP address"
    )
    assert follower.endpoints() == 1
    server.expire()
    server.drop()
    server.put(service("svc2"))
    follower.until(lambda: "svc2" in follower.names())
    follower.until(lambda: follower.source.status().connected)
    assert follower.endpoints() == 1
    assert follower.source.status().complete
    server.delete("EndpointSlice", "svc1-1")
    follower.until(lambda: follower.endpoints() == 0)
    assert follower.source.status().problems == ()


def test_line_that_is_no_event_lists_again(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    server.emit("Service", b'{"type":"MODIF')
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])


def test_rotated_token_is_read_again(server: ApiServer, follow: Follow, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.accepted_token = "first"
    _fill(server)
    follower = follow(token_file=token)
    token.write_text("second")
    server.accepted_token = "second"
    server.drop()
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])
    assert server.tokens[-1].lower() == "bearer second"


def test_busy_server_is_asked_again_and_says_why(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    server.fail(503, times=4)
    server.fail(403, times=2)
    follower = follow()
    assert follower.names() == ["svc1"]


def test_forbidden_names_the_remedy(server: ApiServer, follow: Follow) -> None:
    server.fail(403, times=1000)
    follower = follow(wait=False)
    follower.until(lambda: "403" in follower.source.status().last_error)
    assert "ClusterRole" in follower.source.status().last_error


def test_readable_when_something_changed(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    follower.until(lambda: follower.source.wait(0.2) is None)
    poll = select.poll()
    poll.register(follower.source.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    server.put(service("svc2"))
    assert poll.poll(PATIENCE * 1000)
    assert follower.source.wait(0) is not None
    assert poll.poll(0) == []


def test_changes_are_coalesced(server: ApiServer, follow: Follow) -> None:
    _fill(server)
    follower = follow()
    follower.updates = 0
    for number in range(200):
        server.put(endpoint_slice(endpoints=[endpoint(f"10.0.1.{number}")]))
    server.put(service("svc2"))
    follower.until(lambda: "svc2" in follower.names())
    follower.until(
        lambda: (
            follower.services[ObjectKey("ns1", "svc1")].slices[0].endpoints[0].address[-1] == 199
        )
    )
    assert follower.updates < 200


def test_api_server_replaces_the_address(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")  # reading it again must not bring the address back
    config = server.kubeconfig(tmp_path, tmp_path / "token")
    config.write_bytes(config.read_bytes().replace(server.url.encode(), b"http://192.0.2.1:1"))
    source = KubernetesSource("worker-1", kubeconfig=config, api_server=server.url, settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().synced and source.status().connected)
        server.drop()
        server.put(service())
        follower.until(lambda: follower.names() == ["svc1"])
    finally:
        source.stop()


def test_credentials_of_a_pod(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--api-server alone: the service account's token, sent to the address that was given."""
    from kubernetes.config import incluster_config

    token, certificate = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("of-the-pod")
    certificate.write_text("not asked for over plain HTTP")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    server.accepted_token = "of-the-pod"
    source = KubernetesSource("worker-1", api_server=server.url, settings=QUICK)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: source.status().synced)
    finally:
        source.stop()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing")
    path = tmp_path / "server.pem"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(
        [openssl, "req", "-x509", *key, *subject, *files],
        check=True,
        capture_output=True,
        timeout=30,
    )
    path.write_bytes((tmp_path / "cert.pem").read_bytes() + (tmp_path / "key.pem").read_bytes())
    return path


def test_over_tls(certificate: Path, tmp_path: Path) -> None:
    """Lists, follows, survives a drop, and stops while a read is waiting."""
    with ApiServer(certificate=certificate) as server:
        _fill(server)
        source = KubernetesSource(
            "worker-1", kubeconfig=server.kubeconfig(tmp_path), settings=QUICK
        )
        source.start()
        follower = Follower(source)
        follower.until(lambda: follower.endpoints() == 1 and source.status().connected)
        server.drop()
        server.put(service("svc2"))
        follower.until(lambda: follower.names() == ["svc1", "svc2"])
        follower.until(lambda: source.status().connected)
        source.stop()
        assert not any(thread.is_alive() for thread in source.threads)


def test_unknown_certificate_is_refused(certificate: Path, tmp_path: Path) -> None:
    with ApiServer(certificate=certificate) as server:
        config = server.kubeconfig(tmp_path)
        other = str(ssl.get_default_verify_paths().openssl_cafile or certificate)
        config.write_text(config.read_text().replace(str(certificate), other))
        if not Path(other).exists():
            pytest.skip(f"no certificates of authorities in {other}")
        source = KubernetesSource("worker-1", kubeconfig=config, settings=QUICK)
        source.start()
        follower = Follower(source)
        follower.until(lambda: "certificate" in source.status().last_error.lower())
        assert not source.status().synced
        source.stop()


def test_missing_kubeconfig_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--manifests") as caught:
        KubernetesSource("worker-1", kubeconfig=tmp_path / "none")
    assert "none" in caught.value.message


def test_backoff_is_bounded_and_jittered() -> None:
    backoff = Backoff(0.2, 30.0)
    delays = [backoff.next() for _ in range(50)]
    assert 0.1 <= delays[0] <= 0.2
    assert max(delays) <= 30.0
    assert min(delays[10:]) >= 15.0
    assert len(set(delays[10:])) > 1
    backoff.reset()
    assert backoff.next() <= 0.2
    assert backoff.next(at_least=1000.0) == 30.0
