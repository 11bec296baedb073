"""An API server that misbehaves: the bench's, told to drop, stall, forget, or answer with an error.

with ApiServer() as server:
    server.put(service())
    source = KubernetesSource("worker-1", kubeconfig=server.kubeconfig(tmp_path))
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import msgspec

from lbctl.bench import apiserver
from lbctl.bench.apiserver import API_VERSIONS, Change, Query

Json = dict[str, Any]
_EVENTS = re.compile(r"/apis/events\.k8s\.io/v1/namespaces/([^/]+)/events(?:/([^/]+))?")
_PODS = "/api/v1/pods"
_POD = re.compile(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)")


class _Handler(apiserver.Handler):
    api: ClassVar[ApiServer]

    def do_GET(self) -> None:
        api = self.api
        if api.away:
            self.close_connection = True
            return
        parts = urlsplit(self.path)
        api.requests.append((parts.path, dict(parse_qsl(parts.query))))
        api.tokens.append(self.headers.get("authorization", ""))
        if api.failures:
            code, headers = api.failures.pop(0)
            self.refuse(code, "told to fail", headers)
        elif api.accepted_token and api.tokens[-1].lower() != f"bearer {api.accepted_token}":
            self.refuse(401, "Unauthorized")
        elif parts.path == _PODS:
            pods = {"metadata": {}, "items": [*api.pods.values()]}
            self.answer(200, msgspec.json.encode(pods))
        elif found := _POD.fullmatch(parts.path):
            if pod := api.pods.get((found[1], found[2])):
                self.answer(200, msgspec.json.encode(pod))
            else:
                self.refuse(404, "not found")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self._write(201)

    def do_PATCH(self) -> None:
        self._write(200)

    def _write(self, code: int) -> None:
        """Events are kept as they come; a name can be written once, and patched then."""
        api, path = self.api, urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if api.away:
            self.close_connection = True
            return
        value: Json = msgspec.json.decode(body)
        found = _EVENTS.fullmatch(path)
        api.writes.append((self.command, path, value))
        if api.write_failures:
            self.refuse(api.write_failures.pop(0), "told to fail")
            return
        if found is None:
            self.refuse(404, "only events can be written")
            return
        name = found[2] or value["metadata"]["name"]
        known = api.events_written.get(name)
        if self.command == "POST" and known is not None:
            self.refuse(409, "already exists")
        elif self.command == "PATCH" and known is None:
            self.refuse(404, "not found")
        else:
            api.events_written[name] = {**(known or {}), **value}
            self.answer(code, msgspec.json.encode(api.events_written[name]))

    def list(self, kind: str, query: Query) -> None:
        path = urlsplit(self.path).path
        for _ in range(600):
            if path not in self.api.stall_lists:
                break
            time.sleep(0.05)
        super().list(kind, query)

    def watch(self, kind: str, query: Query) -> None:
        if int(query.get("resourceVersion") or 0) >= self.api.oldest:
            super().watch(kind, query)
        elif self.api.gone_as_event:
            error = apiserver.status(410, "too old") | {"reason": "Expired"}
            self.begin_stream()
            self.chunk(msgspec.json.encode({"type": "ERROR", "object": error}) + b"\n")
            self.chunk(b"")
        else:
            self.refuse(410, "too old resource version")


class ApiServer(apiserver.ApiServer):
    """The server, and the hand that disturbs it. Methods may be called from any thread."""

    handler = _Handler

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        """`certificate`: a PEM file with certificate and key; the server then speaks TLS."""
        super().__init__(port)
        self.pods: dict[tuple[str, str], Json] = {}  # people ask for them, by namespace and name
        self.oldest = 0  # watches from before are answered with 410
        self.gone_as_event = True  # ... inside a 200, else as a status
        self.stalled = False
        self.away = False
        self.stall_lists: set[str] = set()  # paths whose lists are not answered for now
        self.lose_pages = 0  # how many `continue` tokens are not known when they come back
        # Status and headers, one per request.
        self.failures: list[tuple[int, Mapping[str, str]]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.writes: list[tuple[str, str, Json]] = []  # method, path and body
        self.write_failures: list[int] = []  # statuses, one per request that writes
        self.events_written: dict[str, Json] = {}  # by name, as they are now
        self.tokens: list[str] = []  # what requests showed, "" for none
        self.accepted_token: str | None = None
        self.certificate = certificate
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:") if self.certificate else super().url

    def stop(self) -> None:
        self.resume()
        super().stop()

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

    def delete(self, kind: str, name: str, namespace: str = "ns1") -> None:
        super().delete(kind, name, "" if kind == "Node" else namespace)

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
            self._emit(kind, line)

    def bookmark(self, kind: str) -> None:
        with self.changed:
            self.version += 1
            about = {"kind": kind, "apiVersion": API_VERSIONS[kind]}
            metadata = {"resourceVersion": str(self.version)}
            event = {"type": "BOOKMARK", "object": {**about, "metadata": metadata}}
            self._emit(kind, msgspec.json.encode(event))

    def _emit(self, kind: str, line: bytes) -> None:
        self.history[kind].append(Change(self.version, line + b"\n"))
        self.changed.notify_all()

    # Trouble.

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
        """Answer the next requests with an error; an underscore in a header's name is a hyphen."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures += [(status, named)] * times

    # What handlers use.

    def silent(self) -> bool:
        return self.stalled

    def page(self, kind: str, query: Query) -> bytes | None:
        with self.changed:
            if self.lose_pages and "continue" in query:
                self.lose_pages -= 1
                return None
        return super().page(kind, query)
