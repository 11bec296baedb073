"""The Kubernetes source against a server that lists, watches and misbehaves."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lbctl.model.records import ObjectKey
from lbctl.sources.asking import ReflectorSettings
from lbctl.sources.kubernetes import KubernetesSource
from tests.support.apiserver import ApiServer
from tests.support.following import PATIENCE, QUICK, Follower, fill
from tests.support.k8s_objects import endpoint, endpoint_slice, node, service

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


Follow = Callable[..., Follower]


@pytest.fixture
def follow(server: ApiServer, tmp_path: Path) -> Iterator[Follow]:
    """Start a source and wait until it is in step."""
    started: list[KubernetesSource] = []

    def start(
        settings: ReflectorSettings = QUICK, *, wait: bool = True, **options: Any
    ) -> Follower:
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


def test_lists_then_follows(server: ApiServer, follow: Follow) -> None:
    fill(server)
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
    fill(server)
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
    fill(server)
    follower = follow()
    lists = sum("watch" not in q for _, q in server.requests)
    for number in range(2, 5):
        server.drop()
        server.put(endpoint_slice(endpoints=[endpoint(f"10.0.0.{i}") for i in range(number)]))
        follower.until(partial(_has_endpoints, follower, number))
    assert sum("watch" not in q for _, q in server.requests) == lists


def test_stalled_connection_is_noticed(server: ApiServer, follow: Follow) -> None:
    """Open, but nothing comes: given up after the time the server itself would have ended it."""
    fill(server)
    brief = ReflectorSettings(
        watch_seconds=0.2, grace_seconds=0.3, backoff_first=0.02, backoff_limit=0.1
    )
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
    fill(server)
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
    fill(server)
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
    fill(server)
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
    bad = {**service("bad"), "spec": "none"}
    server.put(service("good"), bad)
    follower = follow()
    assert follower.names() == ["good"]
    status = follower.source.status()
    assert status.synced
    assert not status.complete
    assert status.problems == ("Service ns1/bad: spec: expected object, got str",)

    server.put(service("bad"))
    follower.until(lambda: follower.names() == ["bad", "good"])
    assert follower.source.status().complete


def test_object_that_becomes_undecodable_stays_as_it_was(server: ApiServer, follow: Follow) -> None:
    fill(server)
    follower = follow()
    server.put({**endpoint_slice(), "addressType": 4})
    follower.until(lambda: bool(follower.source.status().problems))
    (problem,) = follower.source.status().problems
    assert problem == "EndpointSlice ns1/svc1-1: addressType: expected str, got int"
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
    fill(server)
    follower = follow()
    server.emit("Service", b'{"type":"MODIF')
    server.put(service("svc2"))
    follower.until(lambda: follower.names() == ["svc1", "svc2"])


def test_busy_server_is_asked_again_and_says_why(server: ApiServer, follow: Follow) -> None:
    fill(server)
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
    fill(server)
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
    fill(server)
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
