"""Requests to one API server, whose answers may be anything and of any length."""

from __future__ import annotations

import http.client
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
import structlog

from lbctl.addresses import parse_address
from lbctl.errors import ConfigError, SourceError
from lbctl.instruments import Instruments
from lbctl.model.fields import shortened
from lbctl.model.lenient import UNREADABLE
from lbctl.sources import access
from lbctl.sources.asking import HttpError

if TYPE_CHECKING:
    import urllib3

CONNECT_SECONDS: Final = 5.0
_READ_SIZE = 1 << 16
_ERROR_BYTES = 1 << 16  # of the body of an answer that is no success
_REMEMBERED = 64  # addresses of the server
_HINTS = {
    401: " (its credentials were refused)",
    403: " (the ClusterRole must allow list and watch; see deploy/)",
    404: " (is this a Kubernetes API server?)",
}


class ApiClient:
    """Asks with the credentials of a kubeconfig or a pod."""

    def __init__(
        self,
        kubeconfig: Path | None,
        api_server: str | None,
        instruments: Instruments | None = None,
    ) -> None:
        """Raises ConfigError."""
        self._lock = threading.Lock()
        self._access = access.find(kubeconfig, api_server)
        self._instruments = instruments or Instruments()
        self._addresses = _literal(self.url)

    @property
    def url(self) -> str:
        """The API server's address, without a slash at the end."""
        return self._access.url

    @property
    def port(self) -> int:
        """The port it is asked at."""
        found = urlsplit(self.url)
        usual = 443 if found.scheme == "https" else 80
        try:
            return found.port or usual
        except ValueError:  # no number of a port: nobody will answer
            return usual

    def addresses(self) -> frozenset[bytes]:
        """Where the server is: what its name is an address of, and who answered."""
        return self._addresses

    def close(self) -> None:
        """Close idle connections."""
        self._access.pool.clear()

    def renew(self) -> None:
        """Read credentials and certificates again, now: they were refused. What cannot be read
        stays as it was."""
        with self._lock:
            try:
                self._access.renew()
            except (ConfigError, SourceError) as error:
                log = structlog.get_logger()
                log.warning("credentials cannot be read, keeping the last", error=error.message)

    def get(self, path: str, query: Mapping[str, str], silence_seconds: float) -> ApiResponse:
        """Ask. Raises HttpError for a status that is no success, SourceError for no answer."""
        return self._send("GET", path, silence_seconds, fields=dict(query))

    def send(
        self, method: str, path: str, body: bytes, content_type: str, silence_seconds: float
    ) -> None:
        """Have something written; what is answered beside a status is nobody's business. Raises
        HttpError, SourceError."""
        headers = {"content-type": content_type}
        self._send(method, path, silence_seconds, body=body, extra=headers).close()

    def _send(
        self,
        method: str,
        path: str,
        silence_seconds: float,
        *,
        extra: Mapping[str, str] = MappingProxyType({}),
        **content: Any,
    ) -> ApiResponse:
        import urllib3

        began = time.monotonic()
        try:
            response = self._access.pool.request(
                method,
                self.url + path,
                headers={**self._headers(), **extra},
                preload_content=False,
                decode_content=False,  # nothing compressed was asked for
                redirect=False,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=silence_seconds),
                **content,
            )
        except _failures() as error:
            self._count("<error>", method, began)
            raise SourceError(f"{self.url} does not answer: {_reason(error)}") from error
        self._count(str(response.status), method, began)
        self._remember(response)
        answer = ApiResponse(response, self.url)
        if not 200 <= response.status < 300:
            raise answer.as_error()
        return answer

    def _count(self, code: str, method: str, began: float) -> None:
        host = urlsplit(self.url).netloc
        self._instruments.requests.labels(code, method, host).inc()
        self._instruments.request_seconds.labels(method, host).observe(time.monotonic() - began)

    def _headers(self) -> dict[str, str]:
        """Credentials, read again from their file when they are due, and what we want to get."""
        with self._lock:
            credentials = self._access.credentials()
        return {"accept": "application/json", "user-agent": "lbctl", **credentials}

    def _remember(self, response: urllib3.BaseHTTPResponse) -> None:
        """Who answered: the name of a server says it only to who asks at the same moment."""
        sock = getattr(getattr(response, "connection", None), "sock", None)
        if not isinstance(sock, socket.socket):
            return
        try:
            found = parse_address(sock.getpeername()[0].partition("%")[0])
        except (OSError, ValueError):
            return
        if found not in self._addresses and len(self._addresses) < _REMEMBERED:
            self._addresses |= {found}


class ApiResponse:
    """A body that is read as it comes."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self._url = url

    def read_some(self) -> bytes:
        """At least one byte, empty at the end. Raises SourceError if the connection breaks."""
        return self._guarded(lambda: self._response.read1(_READ_SIZE))

    def close(self) -> None:
        """Give the connection up, or back if the body was read to its end."""
        self._response.close()

    def interrupt(self) -> None:
        """End a read that another thread waits in."""
        try:
            self._response.shutdown()
        except (RuntimeError, ValueError, OSError):  # no read is going on
            return

    def as_error(self) -> HttpError:
        """What a status other than 200 means."""
        status = self._response.status
        try:
            body = self._guarded(lambda: self._response.read(_ERROR_BYTES))
        except SourceError:
            body = b""  # the status says enough
        finally:
            self.close()
        message = shortened(_message(body) or str(self._response.reason or ""))
        text = f"{self._url} answers {status}: {message}{_HINTS.get(status, '')}"
        return HttpError(status, text, retry_after(self._response.headers.get("retry-after", "")))

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except _failures() as error:
            raise SourceError(f"{self._url} broke off: {_reason(error)}") from error


class _Status(msgspec.Struct):
    message: str = ""


def retry_after(text: str, now: Callable[[], float] = time.time) -> float:
    """Seconds, from a number of them or a date (RFC 9110, 10.2.3); 0 for what is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now()
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _message(body: bytes) -> str:
    """Of a Status, else what the body begins with."""
    try:
        return msgspec.json.decode(body, type=_Status).message
    except UNREADABLE:
        return body[:200].decode(errors="replace").strip()


def _literal(url: str) -> frozenset[bytes]:
    try:
        return frozenset({parse_address(urlsplit(url).hostname or "")})
    except ValueError:  # a name
        return frozenset()


def _failures() -> tuple[type[Exception], ...]:
    """What urllib3 raises, and lets through of http.client and ssl. ValueError is for headers and
    addresses that cannot be sent, LookupError for those that cannot be understood."""
    import urllib3

    return (
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
        ValueError,
        LookupError,
    )


def _reason(error: Exception) -> str:
    """urllib3 wraps what happened: the innermost error says it in the fewest words."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception):
        return _reason(reason)
    if len(error.args) == 2 and isinstance(error.args[1], Exception):  # text and cause
        text, cause = str(error.args[0]), str(error.args[1])
        return shortened(text if cause in text else f"{text.rstrip('.')}: {cause}")
    text = str(error) or type(error).__name__
    return shortened(text.partition(": ")[2] if "Connection object at 0x" in text else text)
