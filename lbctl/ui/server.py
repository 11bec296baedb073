"""Serves the page and what it shows, on loopback, to be read alone.

A page of somebody else's must not get at it through the browser of whoever looks. What it could
send is refused: requests by another name than this machine's own (a name of theirs that resolves to
loopback), and everything but GET; what comes back it cannot read, since nothing allows it to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from lbctl.errors import LbError

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/map.js": ("map.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# A port-forward has a port of its own.
_OWN_NAME: Final = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.ASCII)
_SECONDS: Final = 30.0  # for a request to arrive

Query = Mapping[str, str]
Answers = Mapping[str, Callable[[Query], object]]


class Server(ThreadingHTTPServer):
    """Answers by path: functions of what stands behind the `?`, which give a record or raise
    LbError."""

    daemon_threads = True

    def __init__(self, address: str, port: int, answers: Answers) -> None:
        """Raises OSError."""
        self.answers = answers
        if ":" in address:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__((address, port), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Browsers close connections as they like."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "lbctl"
    sys_version = ""
    encoder: ClassVar[msgspec.json.Encoder] = msgspec.json.Encoder()

    def do_GET(self) -> None:
        if not _OWN_NAME.fullmatch(self.headers.get("Host", "")):
            self._refuse(
                HTTPStatus.MISDIRECTED_REQUEST, "asked for by another name than loopback's"
            )
            return
        parts = urlsplit(self.path)
        if parts.path in _FILES:
            name, kind = _FILES[parts.path]
            self._send(
                HTTPStatus.OK, kind, resources.files("lbctl.ui").joinpath("page", name).read_bytes()
            )
        elif parts.path in self.server.answers:
            self._answer(self.server.answers[parts.path], parts.query)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _answer(self, make: Callable[[Query], object], query: str) -> None:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        try:
            found = self.encoder.encode(make(asked))
        except LbError as error:
            said = {"error": error.message, "hint": error.hint}
            self._send(HTTPStatus.BAD_REQUEST, "application/json", self.encoder.encode(said))
            return
        self._send(HTTPStatus.OK, "application/json", found)

    def _refuse(self, code: HTTPStatus, why: str) -> None:
        self._send(code, "text/plain; charset=utf-8", f"{why}\n".encode())

    def _send(self, code: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Whoever looks sees what came."""
