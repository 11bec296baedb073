"""Events at an API server: writing them, and whose turn it is to speak of what all nodes see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from lbctl.errors import SourceError
from lbctl.model.lenient import UNREADABLE
from lbctl.sources.asking import HttpError
from lbctl.sources.client import ApiClient

CONTROLLER: Final = "lbctl"
ACTION: Final = "Serving"
_SECONDS: Final = 10.0  # of silence
_PAGE: Final = 10
_MOST_PAGES: Final = 20
_UNAUTHORIZED: Final = 401
_MOST_BYTES: Final = 16 << 20
_NOTE_BYTES: Final = 1000  # the API takes 1024
_INSTANCE: Final = 128  # as many characters
_SYSTEM: Final = "kubernetes.io/os"
_OF_NODES: Final = "default"  # where Events about cluster-wide objects are


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None


class _Metadata(msgspec.Struct):
    name: str = ""
    labels: dict[str, str] | None = None
    next: str = msgspec.field(default="", name="continue")


class _Node(msgspec.Struct):
    metadata: _Metadata
    status: _Status | None = None

    @property
    def may_speak(self) -> bool:
        """It is ready, and of the kind that has agents."""
        if (self.metadata.labels or {}).get(_SYSTEM, "linux") != "linux":
            return False
        conditions = (self.status.conditions if self.status else None) or ()
        return any(c.type == "Ready" and c.status == "True" for c in conditions)


class _Nodes(msgspec.Struct):
    metadata: _Metadata
    items: list[_Node] | None = None


class EventApi:
    """Asked by one thread, which may wait."""

    def __init__(self, client: ApiClient, node_name: str) -> None:
        self._client = client
        self._node_name = node_name

    def is_speaker(self) -> bool:
        """Whether this is the first ready Linux node by name. Lists are sorted by name, so that a
        page of a few answers it, however many nodes there are. Raises SourceError, HttpError."""
        query = {"limit": str(_PAGE)}
        for _ in range(_MOST_PAGES):
            page = self._page(query)
            names = [node.metadata.name for node in page.items or () if node.may_speak]
            if names:
                return min(names) == self._node_name
            if not page.metadata.next:
                break
            query["continue"] = page.metadata.next
        return False

    def create(
        self, *, name: str, regarding: dict[str, str], reason: str, note: str, now: float
    ) -> None:
        """Raises SourceError, HttpError."""
        namespace = regarding.get("namespace") or _OF_NODES
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _moment(now),
            "reportingController": CONTROLLER,
            "reportingInstance": self._node_name[:_INSTANCE],
            "action": ACTION,
            "reason": reason,
            "regarding": {"apiVersion": "v1", **regarding},
            "note": note.encode()[:_NOTE_BYTES].decode(errors="ignore"),
            "type": "Warning",
        }
        self._send("POST", _path(namespace), event, "application/json")

    def repeat(self, *, name: str, regarding: dict[str, str], count: int, now: float) -> None:
        """That it goes on. Raises SourceError, HttpError (404: the server has forgotten it)."""
        namespace = regarding.get("namespace") or _OF_NODES
        series = {"series": {"count": count, "lastObservedTime": _moment(now)}}
        path = f"{_path(namespace)}/{quote(name, safe='')}"
        self._send("PATCH", path, series, "application/merge-patch+json")

    def close(self) -> None:
        """Give up connections."""
        self._client.close()

    def _send(self, method: str, path: str, value: dict[str, Any], kind: str) -> None:
        with self._renewing():
            self._client.send(method, path, msgspec.json.encode(value), kind, _SECONDS)

    @contextmanager
    def _renewing(self) -> Iterator[None]:
        """Credentials that were refused are read again, for the next request."""
        try:
            yield
        except HttpError as error:
            if error.status == _UNAUTHORIZED:
                self._client.renew()
            raise

    def _page(self, query: dict[str, str]) -> _Nodes:
        with self._renewing():
            response = self._client.get("/api/v1/nodes", query, _SECONDS)
        body = b""
        try:
            while part := response.read_some():
                body += part
                if len(body) > _MOST_BYTES:
                    raise SourceError(f"{_PAGE} nodes have more than {_MOST_BYTES:,} bytes")
        finally:
            response.close()
        try:
            return msgspec.json.decode(body, type=_Nodes)
        except UNREADABLE as error:
            raise SourceError(f"a page of nodes cannot be read: {error}") from error


def _path(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{quote(namespace, safe='')}/events"


def _moment(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")
