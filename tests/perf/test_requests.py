"""Guards what a start asks of the API server, by the number of requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lbctl.sources.kubernetes import KubernetesSource
from tests.perf.support.scale_cluster import endpoints, service, slice_of
from tests.support.apiserver import ApiServer
from tests.support.following import Follower

pytestmark = pytest.mark.perf

NODE = "node-0"


def test_one_list_in_pages_and_one_watch_per_kind(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.put({"kind": "Node", "metadata": {"name": NODE}})
        for number in range(1200):
            server.put(service(number), slice_of(number, endpoints(number, 1)))
        source = KubernetesSource(NODE, kubeconfig=server.kubeconfig(tmp_path))
        source.start()
        try:
            follower = Follower(source)
            follower.until(lambda: source.status().connected and source.status().synced)
        finally:
            source.stop()
        kinds = Counter(
            (path.rpartition("/")[2], "watch" if query.get("watch") else "page")
            for path, query in server.requests
        )
    assert kinds == {
        ("services", "page"): 3,
        ("endpointslices", "page"): 3,
        ("nodes", "page"): 1,
        ("services", "watch"): 1,
        ("endpointslices", "watch"): 1,
        ("nodes", "watch"): 1,
    }
