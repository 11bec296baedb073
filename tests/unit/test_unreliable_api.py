"""The Kubernetes source against a server that leaves most out, keeps failing, or falls silent.

Waits are counted by a clock of the test's own where they are long.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbctl.sources import kubernetes, reflector
from lbctl.sources.asking import ReflectorSettings
from lbctl.sources.kubernetes import KubernetesSource
from lbctl.sources.pace import Pace
from tests.support import hostile_api as hostile
from tests.support.following import Follower
from tests.support.hostile_api import SERVICES, Answer, HostileApi
from tests.support.hostile_following import SHORT, Follow
from tests.support.k8s_objects import service

# Lists that would take most away.


def test_a_list_that_lacks_most_counts_when_another_says_the_same(
    api: HostileApi, follow: Follow
) -> None:
    follower = follow()
    api.items[SERVICES] = api.items[SERVICES][:2]
    api.watches[SERVICES] = hostile.status(410)
    api.closing.set()
    follower.until(lambda: follower.names() == ["svc1", "svc2"])
    limits = [q for path, q in api.queries if path == SERVICES and "watch" not in q]
    assert len(limits) >= 3  # at first, and twice afterwards


def test_a_list_that_lacks_most_once_takes_nothing(api: HostileApi, follow: Follow) -> None:
    follower = follow()
    good = api.items[SERVICES]
    answered = []

    def once(request: hostile.Request) -> None:
        answered.append(request)
        api.items[SERVICES] = good if len(answered) > 1 else []
        request.json(200, api.page(SERVICES))

    api.lists[SERVICES] = once
    api.watches[SERVICES] = lambda r: hostile.status(410)(r) if not answered else r.watch([])
    api.closing.set()
    follower.until(lambda: len(answered) > 1)
    api.closing.clear()
    follower.until(lambda: follower.source.status().connected)
    assert len(follower.names()) == 8


def test_a_first_list_of_nothing_is_asked_for_again(api: HostileApi, follow: Follow) -> None:
    """An agent that starts serves what the last one left: it must not be taken away by a cache that
    is not filled yet."""
    good = api.items[SERVICES]
    answered = []

    def empty_once(request: hostile.Request) -> None:
        answered.append(request)
        api.items[SERVICES] = good if len(answered) > 1 else []
        request.json(200, api.page(SERVICES))

    api.lists[SERVICES] = empty_once
    follower = follow(wait=False)
    follower.until(lambda: follower.last is not None and follower.last.synced)
    assert len(follower.names()) == 8


def test_a_first_list_of_less_than_is_served_is_asked_for_again(
    api: HostileApi, tmp_path: Path
) -> None:
    source = KubernetesSource("worker-1", kubeconfig=api.kubeconfig(tmp_path), settings=SHORT)
    source.expect(services=100)
    source.start()
    try:
        follower = Follower(source)
        follower.until(lambda: len(follower.names()) == 8)
        asked = [q for path, q in api.queries if path == SERVICES and "watch" not in q]
        assert len(asked) == 2
    finally:
        source.stop()


# The rate.


@pytest.mark.parametrize(
    ("name", "lists_do", "watches_do"),
    [
        ("410 after 410", None, hostile.status(410)),
        ("410 as an event", None, hostile.error_event(410)),
        ("410 everywhere", hostile.status(410), hostile.status(410)),
        ("500", hostile.status(500), hostile.status(500)),
        ("504 on watches", None, hostile.status(504)),
        ("429", hostile.status(429), None),
        ("continue without end", hostile.goes_on_without_end, None),
        ("watches that end at once", None, hostile.ends()),
        ("watches that break at once", None, hostile.ends("break")),
        ("broken lines", None, hostile.lines(b'{"type":"MOD')),
        ("a list of another kind", hostile.answers({"kind": "PodList"}), None),
    ],
)
def test_the_rate_while_it_fails(
    api: HostileApi,
    follow: Follow,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    lists_do: Answer | None,
    watches_do: Answer | None,
) -> None:
    """Ten minutes of faults, with waits that are counted instead of waited for."""

    class Counted(Pace):
        """Its clock is what was waited so far."""

        def __init__(self, first: float, limit: float, *, per_minute: int) -> None:
            self.now = 0.0
            super().__init__(first, limit, per_minute=per_minute, clock=lambda: self.now)
            self.times: list[float] = []
            paces.append(self)

        def asked(self) -> None:
            self.times.append(self.now)
            super().asked()

        def failed(self, at_least: float = 0.0) -> float:
            self.now += super().failed(at_least)
            return 0.0

    paces: list[Counted] = []
    monkeypatch.setattr(kubernetes, "Pace", Counted)
    if lists_do:
        api.lists[SERVICES] = lists_do
    if watches_do:
        api.watches[SERVICES] = watches_do
    follower = follow(
        ReflectorSettings(confirm_seconds=0.0, list_seconds=1.0, watch_seconds=20.0), wait=False
    )
    services = paces[0]
    follower.until(lambda: services.now > 600.0)
    for start in (0.0, 60.0, 300.0):
        assert sum(start <= at < start + 60.0 for at in services.times) < 30
    assert services.times[1] <= 1.0  # a hiccup costs little


@pytest.mark.parametrize("code", [429, 503])
def test_what_the_server_asks_for_is_passed_on(
    api: HostileApi, follow: Follow, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    asked: list[float] = []

    def failed(self: Pace, at_least: float = 0.0) -> float:
        asked.append(at_least)
        return 0.01

    monkeypatch.setattr(Pace, "failed", failed)
    api.lists[SERVICES] = hostile.status(code, Retry_After="7")
    follow(wait=False).until(lambda: 7.0 in asked)


# What nobody thought of.


def test_a_thread_that_ends_is_replaced(
    api: HostileApi, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one that knows nothing, and lists."""
    follower = follow()
    real = reflector.Reflector._failed

    def broken(self: Any, error: Any) -> None:
        monkeypatch.setattr(reflector.Reflector, "_failed", real)
        raise ZeroDivisionError

    monkeypatch.setattr(reflector.Reflector, "_failed", broken)
    api.items[SERVICES][0] = service("new")
    api.watches[SERVICES] = hostile.lines(b"no event")
    api.closing.set()
    follower.until(lambda: follower.source.status().restarts == 1)
    api.watches.clear()
    api.closing.clear()
    follower.until(lambda: "new" in follower.names())
    follower.until(lambda: follower.source.status().connected)
    assert follower.source.status().failing == ()


def test_a_watch_that_never_says_anything_is_followed_by_a_list(
    api: HostileApi, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored server accepts a version that it does not have yet, and is silent."""
    monkeypatch.setattr(reflector, "_SILENT_SECONDS", 0.1)
    follower = follow(msgspec.structs.replace(SHORT, watch_seconds=1.0))
    api.items[SERVICES][0] = service("new")
    api.version = 500
    follower.until(lambda: "new" in follower.names())
    lists = [q for path, q in api.queries if path == SERVICES and "watch" not in q]
    assert len(lists) >= 2
