"""The Kubernetes source against a server that answers as none should: what is kept, what is asked.

Waits are counted by a clock of the test's own in test_pace.py; here they are short, and what counts
is that nothing is lost, the thread lives, and the next good answer is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lbctl.sources import lists, reflector
from tests.support import hostile_api as hostile
from tests.support.hostile_api import SERVICES, SLICES, Answer, HostileApi
from tests.support.hostile_following import SHORT, Follow
from tests.support.k8s_objects import Json, endpoint, endpoint_slice, node, service


def _without_items(**changes: Any) -> Callable[[HostileApi], Json]:
    return lambda api: {**api.page(SERVICES), **changes}


def _bare(api: HostileApi) -> Json:
    """Metadata alone, as a client that asked for PartialObjectMetadata gets it."""
    page = api.page(SERVICES)
    items = [
        {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": i["metadata"]}
        for i in page["items"]
    ]
    return {
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": page["metadata"],
        "items": items,
    }


WRONG_LISTS: dict[str, Callable[[HostileApi], object]] = {
    "a page of HTML": lambda api: b"<html><body>Please log in</body></html>",
    "nothing": lambda api: b"",
    "null": lambda api: b"null",
    "half of it": lambda api: msgspec.json.encode(api.page(SERVICES))[:-40],
    "no UTF-8": lambda api: b"\xff\xfe\x00",
    "nesting without end": lambda api: b'{"items":' + b"[" * 200_000,
    "a Status": lambda api: {"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 200},
    "another kind": _without_items(kind="PodList"),
    "another version": _without_items(apiVersion="v2"),
    "no kind": _without_items(kind=""),
    "no resourceVersion": _without_items(metadata={}),
    "one object": lambda api: service("svc1"),
    "metadata alone": _bare,
    "items that are a map": _without_items(items={"a": 1}),
    "a page without items": lambda api: {
        k: v for k, v in api.page(SERVICES).items() if k != "items"
    },
    "other objects in it": _without_items(items=[node()] * 9),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_a_wrong_list_is_not_believed(api: HostileApi, follow: Follow, name: str) -> None:
    """Neither as the first answer nor when everything is known."""
    wrong = WRONG_LISTS[name](api)
    api.lists[SERVICES] = hostile.answers(wrong)
    api.watches[SERVICES] = hostile.status(410)
    follower = follow(wait=False)
    follower.until(lambda: api.requests[SERVICES] > 3)
    assert follower.names() == []
    api.lists.clear()
    follower.until(lambda: len(follower.names()) == 8)
    api.lists[SERVICES] = hostile.answers(wrong)
    before = api.requests[SERVICES]
    follower.until(lambda: api.requests[SERVICES] > before + 4)
    assert len(follower.names()) == 8
    assert follower.source.status().last_error or name == "other objects in it"
    api.lists.clear()
    api.watches.clear()
    follower.until(lambda: follower.source.status().connected)
    assert follower.source.status().restarts == 0


BROKEN: dict[str, Answer] = {
    "500": hostile.status(500),
    "504": hostile.status(504),
    "429 with a wait": hostile.status(429, Retry_After="0"),
    "an odd wait": hostile.status(503, Retry_After="\u00b2"),
    "a wait that is no date": hostile.status(503, Retry_After="Thu, 99 Foo 9999 99:99:99 XYZ"),
    "301": hostile.status(301, Location="http://192.0.2.1/"),
    "410": hostile.status(410),
    "no HTTP": hostile.raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "no status": hostile.raw(b"HTTP/1.1 abc\r\n\r\n"),
    "an endless header": hostile.raw(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000),
    "many headers": hostile.raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n"),
    "chunks of no size": hostile.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"
    ),
    "a chunk of minus one": hostile.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n"
    ),
    "two lengths": hostile.raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde"
    ),
    "a length that is no number": hostile.raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab"),
    "less than its length": hostile.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nab"),
    "gzip that is none": hostile.raw(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "an error of bytes": lambda request: request.body(500, b"\xff\xd8" * 100_000),
    "an error that nests": lambda request: request.body(500, b"[" * 60_000),
    "nothing at all": hostile.raw(b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers_keep_everything(api: HostileApi, follow: Follow, name: str) -> None:
    follower = follow()
    api.lists[SERVICES] = api.watches[SERVICES] = BROKEN[name]
    api.closing.set()  # ends the watch that is open
    before = api.requests[SERVICES]
    follower.until(lambda: api.requests[SERVICES] > before + 4)
    assert len(follower.names()) == 8
    follower.until(lambda: "services:" in follower.source.status().last_error)
    api.closing.clear()
    api.lists.clear()
    api.watches.clear()
    api.items[SERVICES].append(service("svc9"))
    api.version += 1
    follower.until(lambda: follower.source.status().connected)
    assert follower.source.status().restarts == 0


def _event(kind: str, value: Json, version: str = "2000") -> bytes:
    value = {**value, "metadata": {**value["metadata"], "resourceVersion": version}}
    return msgspec.json.encode({"type": kind, "object": value})


STRANGE_LINES: dict[str, bytes] = {
    "no JSON": b'{"type":"MODIF',
    "no event": b"[]",
    "a type of the future": _event("RENAMED", service("svc1")),
    "another kind": _event("MODIFIED", node("svc1")),
    "metadata alone": _event(
        "MODIFIED", {"kind": "PartialObjectMetadata", "metadata": {"name": "svc1"}}
    ),
    "a Status": b'{"kind":"Status","apiVersion":"v1","metadata":{},"code":500}',
    "no version": _event("MODIFIED", service("svc1"), ""),
    "a bookmark without one": b'{"type":"BOOKMARK","object":{"kind":"Service","metadata":{}}}',
    "a lower version": _event("MODIFIED", service("other"), "999"),
    "a lower bookmark": _event("BOOKMARK", {"kind": "Service", "metadata": {}}, "5"),
    "nesting without end": b'{"type":"MODIFIED","object":' + b"[" * 100_000,
    "no UTF-8": b'{"type":"\xff\xfe"}',
    "an error that is none": b'{"type":"ERROR","object":{"code":"x"}}',
    "nobody deleted": _event("DELETED", {"kind": "Service", "metadata": {}}),
}


@pytest.mark.parametrize("name", STRANGE_LINES)
def test_an_event_that_makes_no_sense_lists_again(
    api: HostileApi, follow: Follow, name: str
) -> None:
    follower = follow()
    before = api.requests[SERVICES]
    api.items[SERVICES][0] = service("svc1", cluster_ips=["172.30.0.99"])
    api.watches[SERVICES] = hostile.lines(STRANGE_LINES[name])
    api.closing.set()
    follower.until(lambda: api.requests[SERVICES] > before + 1)
    api.watches.clear()
    api.closing.clear()

    def is_new() -> bool:
        found = {k.name: v.service for k, v in follower.services.items()}["svc1"]
        return found is not None and found.cluster_ips[0][-1] == 99

    follower.until(is_new)
    follower.until(lambda: follower.source.status().connected)
    assert "other" not in follower.names()
    assert follower.source.status().restarts == 0


def test_a_deep_field_costs_nothing(api: HostileApi, follow: Follow) -> None:
    """metadata.managedFields nests as deep as whoever wrote the object likes."""
    text = msgspec.json.encode(api.page(SERVICES))
    text = text.replace(
        b'"name":"svc3"',
        b'"managedFields":' + b'{"f":' * 5000 + b"1" + b"}" * 5000 + b',"name":"svc3"',
    )
    api.lists[SERVICES] = hostile.answers(text)
    follower = follow()
    assert "svc3" in follower.names()


def test_a_large_cluster_is_no_fault(api: HostileApi, follow: Follow) -> None:
    """50,000 services in one page, from a server that knows no limit, and a large event."""
    api.items[SERVICES] = [service(f"svc{i}") for i in range(50_000)]
    many = [
        endpoint(f"10.{i // 250}.{i % 250}.1", "a-node-with-a-long-name") for i in range(20_000)
    ]
    api.watches[SLICES] = hostile.lines(_event("MODIFIED", endpoint_slice(endpoints=many)))
    follower = follow(msgspec.structs.replace(SHORT, list_seconds=60.0), wait=False)
    follower.until(lambda: follower.endpoints() == 20_000)
    assert len(follower.names()) == 50_000
    assert api.requests[SERVICES] == 2  # a list and a watch


def test_a_list_without_end_is_noticed(api: HostileApi, follow: Follow) -> None:
    follower = follow()
    api.lists[SERVICES] = hostile.goes_on_without_end
    api.watches[SERVICES] = hostile.status(410)
    api.closing.set()
    follower.until(lambda: "without end" in follower.source.status().last_error)
    assert len(follower.names()) == 8


def test_bodies_and_lines_are_bounded(
    api: HostileApi, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "MAX_BODY", 50_000)
    monkeypatch.setattr(reflector, "MAX_LINE", 50_000)
    follower = follow()
    api.watches[SERVICES] = hostile.lines(b" " * 200_000)
    api.lists[SERVICES] = hostile.answers(b" " * 200_000)
    api.closing.set()
    follower.until(lambda: "more than 50,000 bytes" in follower.source.status().last_error)
    assert len(follower.names()) == 8


def test_a_body_that_drips_is_given_up(api: HostileApi, follow: Follow) -> None:
    """Each byte comes in time, the answer never."""

    def drips(request: hostile.Request) -> None:
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        request.drip(b" " * 1000, 0.05)

    quick = msgspec.structs.replace(SHORT, list_seconds=0.2)
    follower = follow(quick)
    api.lists[SERVICES] = drips
    api.watches[SERVICES] = hostile.status(410)
    api.closing.set()
    follower.until(lambda: api.requests[SERVICES] > 2)
    api.closing.clear()
    follower.until(lambda: "takes more than" in follower.source.status().last_error)
    assert len(follower.names()) == 8
