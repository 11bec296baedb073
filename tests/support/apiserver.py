"""A stand-in for a Kubernetes API server: list, watch, pagination, and everything that goes wrong.

It keeps objects and a history of changes per kind, speaks HTTP/1.1 with chunked watches, and can be
told to drop, stall, forget its history, or answer with an error. Objects are kept as encoded bytes,
so that thousands of them, and thousands of events a second, cost little.

    with ApiServer() as server:
        server.put(service())
        source = KubernetesSource("worker-1", kubeconfig=server.kubeconfig(tmp_path))
"""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

Json = dict[str, Any]

PATHS = {
    "/api/v1/services": "Service",
    "/api/v1/nodes": "Node",
    "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice",
}
_VERSIONS = {"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}


class Change(msgspec.Struct, gc=False):
    """One line of history. `labels` and `name` are what selectors look at."""

    version: int
    line: bytes
    name: str
    labels: frozenset[str]


class Stored(msgspec.Struct, gc=False):
    """One object."""

    data: bytes
    name: str
    labels: frozenset[str]


class Selection:
    """labelSelector of absent labels, and fieldSelector by name: what a proxy uses."""

    def __init__(self, query: dict[str, str]) -> None:
        terms = [t for t in query.get("labelSelector", "").split(",") if t]
        self.absent = {t.removeprefix("!") for t in terms if t.startswith("!")}
        self.name = query.get("fieldSelector", "").removeprefix("metadata.name=")

    def __call__(self, value: Stored | Change) -> bool:
        return not (self.absent & value.labels) and self.name in ("", value.name)


class ApiServer:
    """The server, and the hand that disturbs it. Methods may be called from any thread."""

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        """`certificate`: a PEM file with certificate and key; the server then speaks TLS."""
        self.changed = threading.Condition()
        self.objects: dict[str, dict[tuple[str, str], Stored]] = {k: {} for k in _VERSIONS}
        self.history: dict[str, list[Change]] = {k: [] for k in _VERSIONS}
        self.version = 100
        self.oldest = 0  # watches from before are answered with 410
        self.gone_as_event = True  # ... inside a 200, else as a status
        self.stalled = False
        self.away = False
        self.stall_lists: set[str] = set()  # paths whose lists are not answered for now
        self.lose_pages = 0  # how many `continue` tokens are not known when they come back
        self.failures: list[tuple[int, dict[str, str]]] = []  # status and headers, one per request
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.tokens: list[str] = []  # what requests showed, "" for none
        self.accepted_token: str | None = None
        self.epoch = 0  # a watch of an earlier epoch ends
        self._pages: dict[str, tuple[int, list[bytes]]] = {}
        self._open: set[socket.socket] = set()
        handler = type("Bound", (_Handler,), {"api": self})
        self._http = _Server(("127.0.0.1", port), handler)
        self.certificate = certificate
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def url(self) -> str:
        scheme = "https" if self.certificate else "http"
        return f"{scheme}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.resume()
        self.drop()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)

    def kubeconfig(self, directory: Path, token_file: Path | None = None) -> Path:
        """A kubeconfig for this server, written into `directory`."""
        user: Json = {"tokenFile": str(token_file)} if token_file else {}
        cluster: Json = {"server": self.url}
        if self.certificate:
            cluster["certificate-authority"] = str(self.certificate)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
        }
        path = directory / "kubeconfig"
        path.write_bytes(msgspec.json.encode(config))
        return path

    # Objects.

    def put(self, *values: Json) -> None:
        """Create or change objects: one event each."""
        with self.changed:
            for value in values:
                meta = value["metadata"]
                key = (meta.get("namespace", ""), meta["name"])
                known = self.objects[value["kind"]].get(key)
                self.version += 1
                data = msgspec.json.encode(
                    {**value, "metadata": {**meta, "resourceVersion": str(self.version)}}
                )
                stored = Stored(data, meta["name"], frozenset(meta.get("labels") or ()))
                self.objects[value["kind"]][key] = stored
                self._record(value["kind"], b"MODIFIED" if known else b"ADDED", stored)
            self.changed.notify_all()

    def delete(self, kind: str, name: str, namespace: str = "ns1") -> None:
        with self.changed:
            stored = self.objects[kind].pop(("" if kind == "Node" else namespace, name))
            self.version += 1
            self._record(kind, b"DELETED", stored)
            self.changed.notify_all()

    def forget(self, kind: str, name: str, namespace: str = "ns1") -> None:
        """Delete without an event, as if it happened while no one was watching."""
        with self.changed:
            del self.objects[kind][namespace, name]

    def repeat(self, kind: str, last: int = 1) -> None:
        """Send the last events once more."""
        with self.changed:
            self.history[kind] += self.history[kind][-last:]
            self.changed.notify_all()

    def emit(self, kind: str, line: bytes) -> None:
        """Send a line that is whatever it is."""
        with self.changed:
            self.version += 1
            self.history[kind].append(Change(self.version, line + b"\n", "", frozenset()))
            self.changed.notify_all()

    def bookmark(self, kind: str) -> None:
        with self.changed:
            self.version += 1
            version = str(self.version)
            line = msgspec.json.encode(
                {
                    "type": "BOOKMARK",
                    "object": {"kind": kind, "metadata": {"resourceVersion": version}},
                }
            )
            self.history[kind].append(Change(self.version, line + b"\n", "", frozenset()))
            self.changed.notify_all()

    def _record(self, kind: str, what: bytes, stored: Stored) -> None:
        line = b'{"type":"' + what + b'","object":' + stored.data + b"}\n"
        self.history[kind].append(Change(self.version, line, stored.name, stored.labels))

    # Trouble.

    def drop(self) -> None:
        """Break every connection, in the middle of whatever it does."""
        with self.changed:
            self.epoch += 1
            for sock in self._open:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            self.changed.notify_all()

    def stall(self) -> None:
        """Keep connections open and send nothing, as a peer does that has vanished."""
        with self.changed:
            self.stalled = True

    def go_away(self) -> None:
        """Break everything and answer no new connection."""
        self.away = True
        self.drop()

    def resume(self) -> None:
        """No more trouble. Watches that were stalled stay dead."""
        with self.changed:
            self.epoch += self.stalled
            self.stalled = self.away = False
            self.failures.clear()
            self.changed.notify_all()

    def expire(self, *, as_event: bool = True) -> None:
        """Forget history: a watch from any version up to now is answered with 410."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.gone_as_event = as_event
            self._pages.clear()

    def fail(self, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next requests with an error."""
        self.failures += [(status, headers)] * times

    # What handlers use.

    def connection(self, sock: socket.socket, *, opened: bool) -> None:
        with self.changed:
            (self._open.add if opened else self._open.discard)(sock)

    def page(self, kind: str, query: dict[str, str]) -> bytes | None:
        """A page of a list; None if its `continue` token has expired."""
        with self.changed:
            token = query.get("continue")
            if token is None:
                wanted = Selection(query)
                items = [s.data for s in self.objects[kind].values() if wanted(s)]
                version, start = self.version, 0
            else:
                name, _, offset = base64.b64decode(token).decode().partition(" ")
                if self.lose_pages or name not in self._pages:
                    self.lose_pages = max(0, self.lose_pages - 1)
                    return None
                (version, items), start = self._pages[name], int(offset)
            limit = int(query.get("limit", "0")) or len(items)
            end = start + limit
            meta = {"resourceVersion": str(version)}
            if end < len(items):
                name = f"{kind}@{version}"
                self._pages[name] = (version, items)
                meta["continue"] = base64.b64encode(f"{name} {end}".encode()).decode()
            head = msgspec.json.encode(
                {"kind": f"{kind}List", "apiVersion": _VERSIONS[kind], "metadata": meta}
            )
            return head[:-1] + b',"items":[' + b",".join(items[start:end]) + b"]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
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
        """Silence."""

    def do_GET(self) -> None:
        api = self.api
        if api.away:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        api.requests.append((parts.path, query))
        api.tokens.append(self.headers.get("authorization", ""))
        kind = PATHS.get(parts.path)
        if api.failures:
            status, headers = api.failures.pop(0)
            self._status(status, "told to fail", headers)
        elif api.accepted_token and api.tokens[-1].lower() != f"bearer {api.accepted_token}":
            self._status(401, "Unauthorized")
        elif kind is None:
            self._status(404, "no such path")
        elif query.get("watch"):
            self._watch(kind, query)
        else:
            self._list(kind, query)

    def _status(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        body = {"kind": "Status", "status": "Failure", "code": code, "message": message}
        self._answer(code, msgspec.json.encode(body), headers or {})

    def _answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, kind: str, query: dict[str, str]) -> None:
        path = urlsplit(self.path).path
        for _ in range(600):
            if path not in self.api.stall_lists:
                break
            time.sleep(0.05)
        page = self.api.page(kind, query)
        if page is None:
            self._status(410, "the continue parameter is too old")
        else:
            self._answer(200, page, {})

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        api = self.api
        version = int(query.get("resourceVersion") or 0)
        gone = version < api.oldest
        if gone and not api.gone_as_event:
            self._status(410, "too old resource version")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if gone:
            status = b'{"kind":"Status","code":410,"reason":"Expired","message":"too old"}'
            self._chunk(b'{"type":"ERROR","object":' + status + b"}\n")
        else:
            deadline = time.monotonic() + float(query.get("timeoutSeconds", "60"))
            self._events(kind, version, Selection(query), deadline)
        self._chunk(b"")

    def _events(self, kind: str, version: int, wanted: Selection, deadline: float) -> None:
        history = self.api.history[kind]
        with self.api.changed:
            epoch = self.api.epoch
            at = next((i for i, c in enumerate(history) if c.version > version), len(history))
        while (new := self._next(history, at, epoch, deadline)) is not None:
            at += len(new)
            lines = b"".join(c.line for c in new if wanted(c))
            if lines:
                self._chunk(lines)

    def _next(
        self, history: list[Change], at: int, epoch: int, deadline: float
    ) -> list[Change] | None:
        """What was not sent yet, waiting for it; None when the watch's time is over."""
        api = self.api

        def due() -> bool:
            return epoch != api.epoch or (at < len(history) and not api.stalled)

        with api.changed:
            while not api.changed.wait_for(due, max(0.05, deadline - time.monotonic())):
                if time.monotonic() >= deadline and not api.stalled:
                    return None
            if epoch != api.epoch:
                raise ConnectionAbortedError
            return history[at:]

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
