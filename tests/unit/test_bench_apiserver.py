"""The stand-in for an API server: what it serves says what it is, as kube-proxy demands."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from lbctl.bench.apiserver import API_VERSIONS, KINDS, ApiServer
from lbctl.bench.dataset import Dataset

DATA = Dataset(3, 2)
PATHS = {kind: path for path, kind in KINDS.items()}
FILLED = [kind for kind in PATHS if kind != "ServiceCIDR"]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        for item in DATA.all_objects("node", "10.65.0.1"):
            running.put(item)
        running.settle()
        yield running


def get(server: ApiServer, kind: str, **query: object) -> bytes:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    with urllib.request.urlopen(f"{server.url}{PATHS[kind]}?{text}", timeout=10) as answer:
        body: bytes = answer.read()
    return body


def page(server: ApiServer, kind: str, **query: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(server, kind, **query))
    return found


def watch(server: ApiServer, kind: str, version: str) -> list[dict[str, Any]]:
    """Everything up to the watch's end, which comes after a second."""
    lines = get(server, kind, watch=1, resourceVersion=version, timeoutSeconds=1).splitlines()
    return [json.loads(line) for line in lines]


def about(value: dict[str, Any]) -> tuple[str, str]:
    return value["kind"], value["apiVersion"]


@pytest.mark.parametrize("kind", PATHS)
def test_lists_and_their_items_say_what_they_are(server: ApiServer, kind: str) -> None:
    found = page(server, kind)
    assert about(found) == (f"{kind}List", API_VERSIONS[kind])
    assert len(found["items"]) == {"Node": 1, "ServiceCIDR": 0}.get(kind, DATA.services)
    assert {about(item) for item in found["items"]} <= {(kind, API_VERSIONS[kind])}


@pytest.mark.parametrize("kind", FILLED)
def test_events_say_what_they_are_about(server: ApiServer, kind: str) -> None:
    before = page(server, kind)
    changed = before["items"][-1]
    version = before["metadata"]["resourceVersion"]
    # Whoever puts an object in need not say more than its kind.
    server.put({key: value for key, value in changed.items() if key != "apiVersion"})
    server.delete(kind, changed["metadata"]["name"], changed["metadata"].get("namespace", ""))
    events = watch(server, kind, version)
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED"]
    assert {about(event["object"]) for event in events} == {(kind, API_VERSIONS[kind])}
    assert page(server, kind)["items"] == before["items"][:-1]


def test_what_was_there_first_is_no_event(server: ApiServer) -> None:
    assert watch(server, "Service", "0") == []


def test_pages_are_of_one_moment(server: ApiServer) -> None:
    first = page(server, "Service", limit=2)
    server.put(DATA.objects(7, ["10.0.0.1"])[0])
    second = page(server, "Service", limit=2, **{"continue": first["metadata"]["continue"]})
    assert [len(part["items"]) for part in (first, second)] == [2, 1]
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]
    assert len(page(server, "Service")["items"]) == 4


def test_services_without_an_address_can_be_left_out(server: ApiServer) -> None:
    """kube-proxy asks for `spec.clusterIP!=None`, of lists and of watches."""
    version = page(server, "Service")["metadata"]["resourceVersion"]
    headless, other = DATA.objects(7, [])[0], DATA.objects(8, [])[0]
    headless["spec"]["clusterIP"] = "None"
    server.put(headless, other)
    query = {"fieldSelector": "spec.clusterIP!%3DNone"}
    names = [item["metadata"]["name"] for item in page(server, "Service", **query)["items"]]
    assert names == ["svc-0", "svc-1", "svc-2", "svc-8"]
    lines = get(server, "Service", watch=1, resourceVersion=version, timeoutSeconds=1, **query)
    (event,) = map(json.loads, lines.splitlines())
    assert event["object"]["metadata"]["name"] == "svc-8"


@pytest.mark.parametrize(
    ("selector", "items"),
    [("metadata.name%3Dnode", 1), ("metadata.name%3Dother", 0), ("metadata.name!%3Dnode", 0)],
)
def test_a_node_is_selected_by_its_name(server: ApiServer, selector: str, items: int) -> None:
    assert len(page(server, "Node", fieldSelector=selector)["items"]) == items


@pytest.mark.parametrize(
    "query", [{"fieldSelector": "spec.type%3DClusterIP"}, {"labelSelector": "app%3Dweb"}]
)
def test_a_selector_that_is_not_understood_is_refused(
    server: ApiServer, query: dict[str, str]
) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "Service", **query)
    with caught.value as answer:
        assert answer.code == 400
        assert "Selector" in json.load(answer)["message"]


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("application/vnd.kubernetes.protobuf, */*", 200),
        ("application/vnd.kubernetes.protobuf,application/json", 200),
        ("application/json;q=0.9", 200),
        ("application/vnd.kubernetes.protobuf", 406),
    ],
)
def test_json_is_answered_to_whoever_takes_it(server: ApiServer, accept: str, code: int) -> None:
    request = urllib.request.Request(f"{server.url}/api/v1/services", headers={"Accept": accept})
    assert answered(request) == (code, "application/json")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/apis/events.k8s.io/v1/namespaces/default/events", 201),
        ("/api/v1/namespaces/default/services", 404),
    ],
)
def test_events_alone_can_be_posted(server: ApiServer, path: str, code: int) -> None:
    request = urllib.request.Request(server.url + path, data=b"k8s\0anything")
    assert answered(request) == (code, "application/json")


def answered(request: urllib.request.Request) -> tuple[int, str]:
    """Code and content type."""
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"]


def test_a_list_as_a_watch_is_refused_with_a_status(server: ApiServer) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "Service", watch=1, sendInitialEvents="true")
    with caught.value as answer:
        assert answer.code == 422
        assert about(json.load(answer)) == ("Status", "v1")
