"""Following a Kubernetes source in tests: a consumer that remembers, and short times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.model.updates import Source, Update
from lbctl.sources.asking import ReflectorSettings
from tests.support.apiserver import ApiServer
from tests.support.k8s_objects import endpoint, endpoint_slice, node, service

PATIENCE = 20.0
QUICK = ReflectorSettings(
    page_size=3,
    watch_seconds=30.0,
    grace_seconds=1.0,
    list_seconds=1.0,
    backoff_first=0.02,
    backoff_limit=0.1,
    confirm_seconds=0.02,
    requests_per_minute=100_000,
)


class Follower:
    """A consumer of a source that keeps what it was told."""

    def __init__(self, source: Source) -> None:
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
        pytest.fail(f"never happened; {self.names()}, {self.source.status()}")

    def take(self, timeout: float) -> Update | None:
        update = self.source.wait(timeout)
        if update is None:
            return None
        self.last = update
        self.updates += 1
        for key, value in update.services.items():
            if value.service is None:
                self.services.pop(key, None)
            else:
                self.services[key] = value
        return update

    def names(self) -> list[str]:
        return sorted(key.name for key in self.services)

    def endpoints(self, name: str = "svc1") -> int:
        found = self.services.get(ObjectKey("ns1", name))
        return sum(len(s.endpoints) for s in found.slices) if found else -1


def fill(server: ApiServer) -> None:
    server.put(
        node(zone="zone-a"),
        node("worker-2"),
        service(),
        endpoint_slice(endpoints=[endpoint("10.0.0.1")]),
    )
