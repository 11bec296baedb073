"""A source of objects behind a Kubernetes API. Bodies are read as raw bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbctl.errors import SourceError
from lbctl.model.decode import NODES, SERVICES, SLICES
from lbctl.model.records import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    EndpointSlice,
    Node,
    Service,
)
from lbctl.model.updates import SourceStatus, Update
from lbctl.sources import access
from lbctl.sources.reflector import HttpError, Reflector, ReflectorSettings, Resource
from lbctl.sources.store import Store

if TYPE_CHECKING:
    import urllib3

# What kube-proxy selects: neither headless services nor those of another proxy ever arrive.
_SELECTOR = {"labelSelector": f"!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"}
_CONNECT_SECONDS = 5.0
_LEAVES = 2.0
_READ_SIZE = 1 << 16


class KubernetesSource:
    """Services, endpoint slices and the own node, watched. A `Source`, see model/updates.py.

    `kubeconfig` None means the pod's service account. `api_server` replaces the address found
    there, so that the agent need not reach the API through a service it provides itself.
    """

    def __init__(
        self,
        node_name: str,
        *,
        kubeconfig: Path | None = None,
        api_server: str | None = None,
        settings: ReflectorSettings | None = None,
    ) -> None:
        """Raises ConfigError if there is no usable configuration."""
        settings = settings or ReflectorSettings()
        self._client = ApiClient(kubeconfig, api_server)
        self._store = Store(node_name, parts=3)
        own_node = {"fieldSelector": f"metadata.name={node_name}"}
        self._reflectors: tuple[
            Reflector[Service] | Reflector[EndpointSlice] | Reflector[Node], ...
        ] = (
            self._reflector(Resource(SERVICES, Service, "/api/v1/services", _SELECTOR), settings),
            self._reflector(
                Resource(
                    SLICES, EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices", _SELECTOR
                ),
                settings,
            ),
            self._reflector(Resource(NODES, Node, "/api/v1/nodes", own_node), settings),
        )
        self.threads: list[threading.Thread] = []

    def _reflector(self, resource: Resource[Any], settings: ReflectorSettings) -> Reflector[Any]:
        return Reflector(resource, self._client, self._store, settings)

    def start(self) -> None:
        """Begin to list and watch. Never fails: an API that is away may come."""
        self.threads = [
            threading.Thread(target=reflector.run, name="watch", daemon=True)
            for reflector in self._reflectors
        ]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads, bounded."""
        for reflector in self._reflectors:
            reflector.stop()
        for thread in self.threads:
            thread.join(_LEAVES)
        if not any(thread.is_alive() for thread in self.threads):
            self._store.close()
            self._client.close()

    def fileno(self) -> int:
        """Readable when `wait` would return something."""
        return self._store.fileno()

    def wait(self, timeout: float) -> Update | None:
        """What changed, after at most `timeout` seconds; None if nothing did."""
        return self._store.wait(timeout)

    def status(self) -> SourceStatus:
        """How the source is doing."""
        return self._store.status()


class ApiClient:
    """GET requests to one API server, with the credentials of a kubeconfig or a pod."""

    def __init__(self, kubeconfig: Path | None, api_server: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._api_server = api_server
        self._lock = threading.Lock()
        self._access: access.Access
        self.renew()

    @property
    def url(self) -> str:
        """The API server's address, without a slash at the end."""
        return self._access.url

    def close(self) -> None:
        """Close idle connections."""
        self._access.pool.clear()

    def renew(self) -> None:
        """Read addresses, credentials and certificates again. Raises ConfigError."""
        self._access = access.find(self._kubeconfig, self._api_server)

    def get(self, path: str, query: Mapping[str, str], silence_seconds: float) -> ApiResponse:
        """Ask. Raises HttpError for a status that is no success, SourceError for no answer."""
        import urllib3

        try:
            response = self._access.pool.request(
                "GET",
                self.url + path,
                fields=dict(query),
                headers=self._headers(),
                preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=silence_seconds),
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise SourceError(f"{self.url} does not answer: {_reason(error)}") from error
        answer = ApiResponse(response, self.url)
        if response.status != 200:
            raise answer.as_error()
        return answer

    def _headers(self) -> dict[str, str]:
        """Credentials, read again from their file when they are due, and what we want to get."""
        with self._lock:
            credentials = self._access.credentials()
        return {"accept": "application/json", "user-agent": "lbctl", **credentials}


class ApiResponse:
    """A body that is read as it comes."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self._url = url

    def read_all(self) -> bytes:
        """The rest of the body. Raises SourceError if the connection breaks."""
        return self._guarded(self._response.read)

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
        body = self._guarded(self._response.read)
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            message = body[:200].decode(errors="replace").strip()
        hint = _HINTS.get(status, "")
        text = f"{self._url} answers {status}: {message or self._response.reason}{hint}"
        return HttpError(status, text, _seconds(self._response.headers.get("retry-after", "")))

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        import urllib3

        try:
            return read()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise SourceError(f"{self._url} broke off: {_reason(error)}") from error


_HINTS = {
    401: " (its credentials were refused)",
    403: " (the ClusterRole must allow list and watch; see deploy/)",
    404: " (is this a Kubernetes API server?)",
}


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _reason(error: Exception) -> str:
    """urllib3 wraps what happened: the innermost error says it in the fewest words."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception):
        return _reason(reason)
    if len(error.args) == 2 and isinstance(error.args[1], Exception):  # text and cause
        text, cause = str(error.args[0]), str(error.args[1])
        return text if cause in text else f"{text.rstrip('.')}: {cause}"
    text = str(error) or type(error).__name__
    return text.partition(": ")[2] if "Connection object at 0x" in text else text
