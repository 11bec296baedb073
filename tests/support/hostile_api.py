"""An API server that answers in every way a server should not, by name.

It listens on loopback unless told otherwise, and counts requests by path. A test names what lists
and watches do; what it does not name is answered well, from `items`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

Json = dict[str, Any]
Answer = Callable[["Request"], None]

KINDS = {
    "/api/v1/services": ("v1", "Service"),
    "/api/v1/nodes": ("v1", "Node"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
}
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


class HostileApi:
    """`lists` and `watches` hold, by path, what is done instead of a good answer."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.lists: dict[str, Answer] = {}
        self.watches: dict[str, Answer] = {}
        self.items: dict[str, list[Json]] = {path: [] for path in KINDS}
        self.version = 1000
        self.requests: Counter[str] = Counter()
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str] = []
        self.closing = threading.Event()
        handler = type("Bound", (Request,), {"api": self})
        self._http = _Server((host, 0), handler)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self._http.server_address[1]}"

    def __enter__(self) -> HostileApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def kubeconfig(self, directory: Path) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {}}],
        }
        path = directory / "kubeconfig"
        path.write_bytes(msgspec.json.encode(config))
        return path

    def page(self, path: str, **metadata: str) -> Json:
        """A good list."""
        version, kind = KINDS[path]
        items = [
            {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
            for item in self.items[path]
        ]
        meta = {"resourceVersion": str(self.version), **metadata}
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": items}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are right to."""


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    api: ClassVar[HostileApi]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        api = self.api
        api.requests[parts.path] += 1
        api.queries.append((parts.path, query))
        api.tokens.append(self.headers.get("authorization", ""))
        self.place, self.query = parts.path, query
        watches = "watch" in query
        answer = (api.watches if watches else api.lists).get(parts.path)
        if answer is not None:
            answer(self)
        elif watches:
            self.watch([])
        else:
            self.json(200, api.page(parts.path))

    def body(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def json(self, status: int, value: object, headers: Mapping[str, str] | None = None) -> None:
        self.body(status, msgspec.json.encode(value), headers)

    def raw(self, data: bytes) -> None:
        """Bytes that need not be HTTP; the connection ends."""
        self.wfile.write(data)
        self.close_connection = True

    def watch(self, lines: list[bytes], *, then: str = "wait") -> None:
        """Send lines, then wait until the end of the test, `end` in order or `break` off."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
        if then == "wait":
            self.api.closing.wait(float(self.query.get("timeoutSeconds", "60")))
        if then == "break":
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    def drip(self, data: bytes, seconds: float) -> None:
        """A byte at a time."""
        for byte in data:
            if self.api.closing.wait(seconds):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()


def status(code: int, **headers: str) -> Answer:
    """A Status of Kubernetes, as an error."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: request.json(code, {**body, "message": "told to"}, named)


def error_event(code: int) -> Answer:
    """A watch that is refused inside a 200."""
    event = {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "code": code}}
    return lambda request: request.watch([msgspec.json.encode(event) + b"\n"], then="end")


def ends(then: str = "end") -> Answer:
    """A watch that is over at once."""
    return lambda request: request.watch([], then=then)


def lines(*data: bytes) -> Answer:
    """A watch that says this, and stays."""
    return lambda request: request.watch([line + b"\n" for line in data])


def goes_on_without_end(request: Request) -> None:
    """Every page has a `continue`, with a token of its own."""
    token = f"page-{time.monotonic_ns()}"
    request.json(200, request.api.page(request.place, **{"continue": token}))


def answers(value: object) -> Answer:
    """200, with whatever this is."""
    if isinstance(value, bytes):
        return lambda request: request.body(200, value)
    return lambda request: request.json(200, value)


def raw(data: bytes) -> Answer:
    """Bytes that need not be HTTP."""
    return lambda request: request.raw(data)
