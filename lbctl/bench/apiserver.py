"""A Kubernetes API server, as far as a proxy sees one: lists in pages, selectors, and watches.

Objects and the history of their changes are kept encoded, so that thousands of them, and thousands
of events a second, cost little beside the client that reads them. It behaves; how one misbehaves is
added to it for tests, in tests/support/apiserver.py.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

import msgspec

from lbctl.lab.objects import JsonObject

Query = Mapping[str, str]

KINDS = {
    "/api/v1/services": "Service",
    "/api/v1/nodes": "Node",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
    "/apis/networking.k8s.io/v1/servicecidrs": "ServiceCIDR",  # kube-proxy asks
}
API_VERSIONS = {
    "Service": "v1",
    "Node": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "ServiceCIDR": "networking.k8s.io/v1",
}
CONTENT_TYPE = "application/json"
EVENT_VERSION = "events.k8s.io/v1"
_EVENTS = re.compile(rf"/apis/{re.escape(EVENT_VERSION)}/namespaces/([^/]+)/events")
_FIELDS = ("metadata.name", "metadata.namespace", "spec.clusterIP")  # that can be selected by
_JSON = frozenset({CONTENT_TYPE, "application/*", "*/*"})
_MOST_BODY = 1 << 20  # bytes of what a client posts
_FIRST_VERSION = 100
_WATCH_SECONDS = 300.0  # unless the client says how long
_JOIN_SECONDS = 5.0


class Stored(msgspec.Struct, gc=False):
    """One object. `labels` and `fields` are what selectors look at."""

    data: bytes
    fields: Mapping[str, str]
    labels: frozenset[str]


class Change(msgspec.Struct, gc=False):
    """One line of history."""

    version: int
    line: bytes
    fields: Mapping[str, str] = {}
    labels: frozenset[str] = frozenset()


class Selection:
    """labelSelector of absent labels, and fieldSelector: what a proxy uses.

    ValueError for any other: a term that was overlooked would look like a fault of the client.
    """

    def __init__(self, query: Query) -> None:
        self._absent: set[str] = set()
        self._fields: list[tuple[str, str, bool]] = []  # field, value, whether it has to be that
        for term in filter(None, query.get("labelSelector", "").split(",")):
            if not term.startswith("!"):
                raise ValueError(f"labelSelector {term!r}: only absent labels are understood")
            self._absent.add(term.removeprefix("!"))
        for term in filter(None, query.get("fieldSelector", "").split(",")):
            field, sign, value = term.partition("!=" if "!=" in term else "=")
            if field not in _FIELDS:
                raise ValueError(f"fieldSelector {term!r}: the fields are {', '.join(_FIELDS)}")
            self._fields.append((field, value, sign == "="))

    def __call__(self, value: Stored | Change) -> bool:
        return not (self._absent & value.labels) and all(
            (value.fields.get(field, "") == wanted) == equal
            for field, wanted, equal in self._fields
        )


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    api: ClassVar[ApiServer]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.api.connection(self.connection, opened=True)

    def finish(self) -> None:
        self.api.connection(self.connection, opened=False)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: clients tell of their troubles."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        kind = KINDS.get(parts.path)
        if kind is None:
            self.refuse(404, "no such path")
        elif not self._json_will_do():
            self.refuse(406, "only JSON is spoken here")
        elif query.get("sendInitialEvents"):
            self.refuse(422, "sendInitialEvents: clients that ask for it fall back to a list")
        elif problem := _not_understood(query):
            self.refuse(400, problem)
        elif query.get("watch"):
            self.watch(kind, query)
        else:
            self.list(kind, query)

    def do_POST(self) -> None:
        """An event is taken and forgotten. It may be protobuf, so that the answer can only say what
        it is."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MOST_BODY:
            self.close_connection = True
            self.refuse(413, "too large")
            return
        self.rfile.read(length)
        if not (found := _EVENTS.fullmatch(urlsplit(self.path).path)):
            self.refuse(404, "only events can be posted")
            return
        metadata = {"name": "event", "namespace": found[1]}
        event = {"kind": "Event", "apiVersion": EVENT_VERSION, "metadata": metadata}
        self.answer(201, msgspec.json.encode(event))

    def _json_will_do(self) -> bool:
        """Whether the client takes JSON: kube-proxy would rather have protobuf, but takes all."""
        asked = self.headers.get("Accept") or "*/*"
        return not _JSON.isdisjoint(part.partition(";")[0].strip() for part in asked.split(","))

    def list(self, kind: str, query: Query) -> None:
        """Answer with a page of a list."""
        page = self.api.page(kind, query)
        if page is None:
            self.refuse(410, "the continue parameter is too old")
        else:
            self.answer(200, page)

    def watch(self, kind: str, query: Query) -> None:
        """Answer with events, until the time the client gave is over."""
        self.begin_stream()
        for lines in self.api.events(kind, query):
            self.chunk(lines)
        self.chunk(b"")

    def refuse(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a Status."""
        self.answer(code, msgspec.json.encode(status(code, message)), headers or {})

    def answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer with a whole body."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        """Answer with chunks, of which an empty one is the last."""
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


class ApiServer:
    """The server, at `url` once it is entered. Its methods may be called from any thread."""

    handler: ClassVar[type[Handler]] = Handler

    def __init__(self, port: int = 0) -> None:
        """Listens on the loopback address of the calling thread's network namespace; `port` 0: on
        any that is free."""
        self.changed = threading.Condition()
        self.objects: dict[str, dict[tuple[str, str], Stored]] = {k: {} for k in API_VERSIONS}
        self.history: dict[str, list[Change]] = {k: [] for k in API_VERSIONS}
        self.version = _FIRST_VERSION
        self.epoch = 0  # a watch of an earlier epoch ends
        self._pages: dict[str, tuple[int, list[bytes]]] = {}
        self._open: set[socket.socket] = set()
        self.http = _Server(("127.0.0.1", port), type("Bound", (self.handler,), {"api": self}))
        self._thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End every connection, and the server."""
        self.drop()
        self.http.shutdown()
        self.http.server_close()
        self._thread.join(_JOIN_SECONDS)

    # Objects

    def put(self, *values: JsonObject) -> None:
        """Create or change objects: one event each."""
        with self.changed:
            for value in values:
                kind, meta = value["kind"], value["metadata"]
                key = (meta.get("namespace", ""), meta["name"])
                known = self.objects[kind].get(key)
                self.version += 1
                data = _encode(value, self.version)
                stored = Stored(data, _fields(value), frozenset(meta.get("labels") or ()))
                self.objects[kind][key] = stored
                self._record(kind, b"MODIFIED" if known else b"ADDED", stored)
            self.changed.notify_all()

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Remove an object, with an event."""
        with self.changed:
            stored = self.objects[kind].pop((namespace, name))
            self.version += 1
            self._record(kind, b"DELETED", stored)
            self.changed.notify_all()

    def settle(self) -> None:
        """No event so far is told any more: the objects have always been as they are."""
        with self.changed:
            for history in self.history.values():
                history.clear()

    def _record(self, kind: str, what: bytes, stored: Stored) -> None:
        line = b'{"type":"' + what + b'","object":' + stored.data + b"}\n"
        self.history[kind].append(Change(self.version, line, stored.fields, stored.labels))

    # What handlers use

    def connection(self, sock: socket.socket, *, opened: bool) -> None:
        with self.changed:
            (self._open.add if opened else self._open.discard)(sock)

    def drop(self) -> None:
        """Break every connection, in the middle of whatever it does."""
        with self.changed:
            self.epoch += 1
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self.changed.notify_all()

    def page(self, kind: str, query: Query) -> bytes | None:
        """A page of a list; None if its `continue` token is not known."""
        with self.changed:
            token = query.get("continue")
            if token is None:
                wanted = Selection(query)
                items = [s.data for s in self.objects[kind].values() if wanted(s)]
                version, start = self.version, 0
            else:
                name, _, offset = base64.b64decode(token).decode().partition(" ")
                if name not in self._pages:
                    return None
                (version, items), start = self._pages[name], int(offset)
            end = start + (int(query.get("limit", "0")) or len(items))
            meta = {"resourceVersion": str(version)}
            if end < len(items):
                name = f"{kind}@{version}"
                self._pages[name] = (version, items)
                meta["continue"] = base64.b64encode(f"{name} {end}".encode()).decode()
        head = msgspec.json.encode(
            {"kind": f"{kind}List", "apiVersion": API_VERSIONS[kind], "metadata": meta}
        )
        return head[:-1] + b',"items":[' + b",".join(items[start:end]) + b"]}"

    def events(self, kind: str, query: Query) -> Iterator[bytes]:
        """The lines of a watch. ConnectionAbortedError once its connection is broken."""
        wanted, history = Selection(query), self.history[kind]
        version = int(query.get("resourceVersion") or 0)
        deadline = time.monotonic() + float(query.get("timeoutSeconds") or _WATCH_SECONDS)
        with self.changed:
            epoch = self.epoch
            at = next((i for i, c in enumerate(history) if c.version > version), len(history))
        while (new := self._next(history, at, epoch, deadline)) is not None:
            at += len(new)
            lines = b"".join(c.line for c in new if wanted(c))
            if lines:
                yield lines

    def silent(self) -> bool:
        """Whether events are held back for now."""
        return False

    def _next(
        self, history: list[Change], at: int, epoch: int, deadline: float
    ) -> list[Change] | None:
        """What was not sent yet, waiting for it; None when the watch's time is over."""

        def due() -> bool:
            return epoch != self.epoch or (at < len(history) and not self.silent())

        with self.changed:
            while not self.changed.wait_for(due, max(0.05, deadline - time.monotonic())):
                if time.monotonic() >= deadline and not self.silent():
                    return None
            if epoch != self.epoch:
                raise ConnectionAbortedError
            return history[at:]


def status(code: int, message: str) -> JsonObject:
    """A Status that says why something was refused."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "message": message,
    }


def _not_understood(query: Query) -> str:
    """What of the selectors is not understood; empty for nothing."""
    try:
        Selection(query)
    except ValueError as error:
        return str(error)
    return ""


def _fields(item: JsonObject) -> dict[str, str]:
    """The fields of an object that can be selected by, as far as it has them: tests put in objects
    that are none."""
    found: dict[str, str] = {}
    for field in _FIELDS:
        part, _, name = field.partition(".")
        holder = item.get(part)
        value = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(value, str):
            found[field] = value
    return found


def _encode(item: JsonObject, version: int) -> bytes:
    """With kind, apiVersion and resourceVersion, whatever the object says of the latter two."""
    metadata = {**item["metadata"], "resourceVersion": str(version)}
    named = {"kind": item["kind"], "apiVersion": API_VERSIONS[item["kind"]]}
    return msgspec.json.encode({**item, **named, "metadata": metadata})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def server_bind(self) -> None:
        """Without looking the host's name up, which a namespace without a resolver waits for."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed break their connections off, and tests do."""
