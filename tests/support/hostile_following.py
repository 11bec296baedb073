"""A Kubernetes source that follows a hostile API server: short times, and eight services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lbctl.sources.asking import ReflectorSettings
from lbctl.sources.kubernetes import KubernetesSource
from tests.support.following import Follower
from tests.support.hostile_api import SERVICES, SLICES, HostileApi
from tests.support.k8s_objects import endpoint, endpoint_slice, node, service

SHORT = ReflectorSettings(
    page_size=3,
    watch_seconds=20.0,
    grace_seconds=1.0,
    list_seconds=1.0,
    backoff_first=0.02,
    backoff_limit=0.05,
    confirm_seconds=0.02,
    requests_per_minute=100_000,
)
Follow = Callable[..., Follower]


@contextmanager
def serving() -> Iterator[HostileApi]:
    """A server that has them, and answers well until told otherwise."""
    with HostileApi() as running:
        running.items[SERVICES] = [service(f"svc{i}") for i in range(1, 9)]
        running.items[SLICES] = [endpoint_slice(endpoints=[endpoint("10.0.0.1")])]
        running.items["/api/v1/nodes"] = [node()]
        yield running


@contextmanager
def following(api: HostileApi, directory: Path) -> Iterator[Follow]:
    """Starts sources; a test may wait until all services are known."""
    started: list[KubernetesSource] = []

    def start(settings: ReflectorSettings = SHORT, *, wait: bool = True) -> Follower:
        source = KubernetesSource(
            "worker-1", kubeconfig=api.kubeconfig(directory), settings=settings
        )
        source.start()
        started.append(source)
        follower = Follower(source)
        if wait:
            follower.until(lambda: source.status().connected and len(follower.names()) == 8)
        return follower

    yield start
    for source in started:
        source.stop()
