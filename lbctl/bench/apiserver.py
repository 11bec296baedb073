"""The part of a Kubernetes API server that an agent talks to: lists in pages, and watches.

It listens inside a namespace of the run and is served by a thread of the harness. Objects are kept
encoded, so that it costs little beside the agent that reads them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from lbctl.lab import namespace
from lbctl.lab.objects import JsonObject

KINDS = {
    "/api/v1/services": "Service",
    "/api/v1/nodes": "Node",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
    "/apis/networking.k8s.io/v1/servicecidrs": "ServiceCIDR",  # kube-proxy asks; there are none
}
_FIRST_VERSION = 1
_WATCH_SECONDS = 300.0  # unless the client says how long
_JOIN_SECONDS = 5.0


class ApiServer:
    """Serves `objects` at `url`, in the network namespace `place`. A context manager."""

    def __init__(self, place: str, objects: Iterable[JsonObject]) -> None:
        self._changed = threading.Condition()
        self._lists: dict[str, list[bytes]] = {kind: [] for kind in KINDS.values()}
        self._events: dict[str, list[bytes]] = {kind: [] for kind in KINDS.values()}
        self._closed = False
        for item in objects:
            self._lists[item["kind"]].append(_encode(item, _FIRST_VERSION))
        listener = namespace.run_in(place, lambda: socket.create_server(("127.0.0.1", 0)))
        handler = type("Handler", (_Handler,), {"api": self})
        self._http = _Server(listener.getsockname(), handler, bind_and_activate=False)
        self._http.socket.close()
        self._http.socket = listener
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
        )

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(_JOIN_SECONDS)

    def modify(self, item: JsonObject) -> None:
        """Tell all watches of a changed object. Lists stay as they were: who lists again gets the
        events again, from the version of the list."""
        kind = item["kind"]
        with self._changed:
            version = _FIRST_VERSION + len(self._events[kind]) + 1
            line = b'{"type":"MODIFIED","object":' + _encode(item, version) + b"}\n"
            self._events[kind].append(line)
            self._changed.notify_all()

    def page(self, kind: str, query: Mapping[str, str]) -> bytes:
        """A page of a list; the `continue` token is the number of its first object."""
        items, start = self._lists[kind], int(query.get("continue") or 0)
        end = start + (int(query.get("limit") or 0) or len(items))
        meta = {"resourceVersion": str(_FIRST_VERSION)}
        if end < len(items):
            meta["continue"] = str(end)
        head = msgspec.json.encode({"kind": f"{kind}List", "apiVersion": "v1", "metadata": meta})
        return head[:-1] + b',"items":[' + b",".join(items[start:end]) + b"]}"

    def events(self, kind: str, after: int, timeout: float) -> list[bytes] | None:
        """The events behind the first `after`, waiting for one; None when nothing will come."""
        found = self._events[kind]
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(found) > after, timeout)
            return None if self._closed or len(found) <= after else found[after:]


def _encode(item: JsonObject, version: int) -> bytes:
    metadata = {**item["metadata"], "resourceVersion": str(version)}
    return msgspec.json.encode({**item, "metadata": metadata})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An agent that is killed breaks its connections off."""


class _Handler(BaseHTTPRequestHandler):
    api: ClassVar[ApiServer]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the agent tells of its troubles."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        kind = KINDS.get(parts.path)
        if kind is None:
            self.send_error(404)
        elif query.get("sendInitialEvents"):
            self._refuse_streaming()
        elif query.get("watch"):
            self._watch(kind, query)
        else:
            body = self.api.page(kind, query)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _refuse_streaming(self) -> None:
        """A list as a watch: clients that ask for one fall back to a list."""
        reason = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid"}
        body = msgspec.json.encode({**reason, "code": 422, "message": "sendInitialEvents"})
        self.send_response(422)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, kind: str, query: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = max(0, int(query.get("resourceVersion") or 0) - _FIRST_VERSION)
        seconds = float(query.get("timeoutSeconds") or _WATCH_SECONDS)
        while (lines := self.api.events(kind, sent, seconds)) is not None:
            sent += len(lines)
            data = b"".join(lines)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
