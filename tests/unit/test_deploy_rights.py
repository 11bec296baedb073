"""deploy/rbac.yaml grants exactly what the source asks an API server for, in good days and bad."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from lbctl.sources.client import ApiClient
from lbctl.sources.eventapi import EventApi
from lbctl.sources.kubernetes import KubernetesSource
from tests.support.apiserver import ApiServer
from tests.support.following import QUICK, Follower, fill
from tests.support.k8s_objects import service

DEPLOY = Path(__file__).parents[2] / "deploy"
RBAC = DEPLOY / "rbac.yaml"
EVENTS = DEPLOY / "components" / "events" / "rbac.yaml"
VERBS = {"POST": "create", "PATCH": "patch"}
Right = tuple[str, str, str]  # group, resource, verb


def granted(path: Path = RBAC) -> set[Right]:
    rights: set[Right] = set()
    for found in yaml.safe_load_all(path.read_text()):
        for rule in found.get("rules", ()) if found else ():
            assert "*" not in str(rule)
            rights |= {
                (group, resource, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return rights


def needed(path: str, query: dict[str, str]) -> Right:
    """The right that an API server asks its authorizer about. The stand-in answers GET alone."""
    words = path.strip("/").split("/")
    group, rest = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    assert len(rest) in (1, 2), f"{path} is no path of a whole kind or one object"
    verb = "get" if len(rest) == 2 else "watch" if query.get("watch") else "list"
    return group, rest[0], verb


def test_a_single_object_would_be_another_right() -> None:
    assert needed("/api/v1/nodes/worker-1", {}) == ("", "nodes", "get")
    assert needed("/api/v1/nodes", {"watch": "1"}) == ("", "nodes", "watch")


def _is_known(follower: Follower, name: str) -> bool:
    return name in follower.names()


def test_what_is_granted_is_what_is_asked_for(tmp_path: Path) -> None:
    with ApiServer() as server:
        fill(server)
        for number in range(QUICK.page_size * 2):
            server.put(service(f"page{number}"))
        source = KubernetesSource(
            "worker-1", kubeconfig=server.kubeconfig(tmp_path), settings=QUICK
        )
        source.start()
        try:
            follower = Follower(source)
            follower.until(lambda: source.status().synced and source.status().connected)
            troubles: list[Callable[[], None]] = [
                server.drop,
                server.expire,
                partial(server.expire, as_event=False),
                partial(server.fail, 500, times=3),
                partial(server.fail, 410, times=3),
            ]
            for number, trouble in enumerate(troubles):
                trouble()
                server.drop()
                server.put(service(f"after{number}"))
                follower.until(partial(_is_known, follower, f"after{number}"))
        finally:
            source.stop()
        asked = {needed(path, query) for path, query in server.requests}
        own = [query for path, query in server.requests if path.endswith("/nodes")]
    assert asked == granted()
    # A role cannot say "the own one"; the field selector does.
    assert {query.get("fieldSelector") for query in own} == {"metadata.name=worker-1"}


def test_events_need_what_their_component_grants(tmp_path: Path) -> None:
    with ApiServer() as server:
        fill(server)
        api = EventApi(ApiClient(server.kubeconfig(tmp_path), None), "worker-1")
        regarding = {"kind": "Service", "namespace": "ns1", "name": "web"}
        api.is_speaker()
        api.create(name="web.1", regarding=regarding, reason="NoRoom", note="", now=0.0)
        api.repeat(name="web.1", regarding=regarding, count=2, now=1.0)
        api.close()
        written = {("events.k8s.io", "events", VERBS[method]) for method, _, _ in server.writes}
        read = {needed(path, query) for path, query in server.requests}
    assert written == granted(EVENTS)
    assert read <= granted()
