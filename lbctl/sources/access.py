"""The way to an API server: its address, its certificate, and what proves who we are.

A pod needs three files' worth of knowledge for that. Everything else (kubeconfig files with their
contexts and plugins, proxies) is the `kubernetes` package's work, which takes 0.3 s and 17 MB of
every agent that imports it.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
import yaml

from lbctl.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import urllib3

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60.0  # the kubelet replaces it long before it expires
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
_CONNECTIONS = 4

# A peer that vanished is noticed after 15 + 3 * 5 s; also while data of ours is unacknowledged.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]


class Access(Protocol):
    """Where the server is, and how to ask it."""

    url: str  # without a slash at the end
    pool: urllib3.PoolManager

    def credentials(self) -> dict[str, str]:
        """Headers. Raises SourceError if what they are made of cannot be read."""


def find(kubeconfig: Path | None, api_server: str | None) -> Access:
    """By a kubeconfig, else by the pod's service account; `api_server` replaces the address found
    there. Raises ConfigError."""
    if kubeconfig is None and not any(os.environ.get(name) for name in _PROXIES):
        return PodAccess(api_server)
    return PackageAccess(kubeconfig, api_server)


class PodAccess:
    """The service account of the pod this runs in."""

    def __init__(self, api_server: str | None, account: Path | None = None) -> None:
        """Without credentials only if the address was given (kubectl proxy needs none)."""
        import urllib3

        account = account or ACCOUNT
        self._token_file = account / "token"
        certificate = account / "ca.crt"
        self._anonymous = bool(api_server) and not self._token_file.exists()
        self._token = ""
        self._read_at = -_TOKEN_SECONDS
        self.url = (api_server or _address_in_cluster()).rstrip("/")
        trust: dict[str, Any] = {"cert_reqs": "CERT_REQUIRED"}
        if self._anonymous:
            structlog.get_logger().warning("no credentials for the API server", url=self.url)
        else:
            try:
                self._read_token()
                certificate.read_bytes()
            except OSError as error:
                raise _no_access("this pod's service account", error) from error
            trust["ca_certs"] = str(certificate)
        self.pool = urllib3.PoolManager(
            maxsize=_CONNECTIONS, retries=False, socket_options=_KEEPALIVE, **trust
        )

    def credentials(self) -> dict[str, str]:
        if self._anonymous:
            return {}
        if time.monotonic() >= self._read_at + _TOKEN_SECONDS:
            try:
                self._read_token()
            except OSError as error:
                raise SourceError(f"credentials cannot be read: {error}") from error
        return {"authorization": f"Bearer {self._token}"}

    def _read_token(self) -> None:
        token = self._token_file.read_text().strip()
        if not token:
            raise OSError(f"{self._token_file} is empty")
        self._token, self._read_at = token, time.monotonic()


class PackageAccess:
    """What the `kubernetes` package makes of a kubeconfig, or of a pod behind a proxy."""

    def __init__(self, kubeconfig: Path | None, api_server: str | None) -> None:
        self._configuration = _load(kubeconfig, api_server)
        # Kept here, since reading a token again puts the configuration's own address back.
        self.url = (api_server or str(self._configuration.host)).rstrip("/")
        self._configuration.retries = False
        self._configuration.socket_options = _KEEPALIVE
        self._configuration.connection_pool_maxsize = _CONNECTIONS
        client = _kubernetes("client.rest").RESTClientObject(self._configuration)
        self.pool: urllib3.PoolManager = client.pool_manager

    def credentials(self) -> dict[str, str]:
        unreadable = _kubernetes("config").ConfigException
        try:
            found = self._configuration.auth_settings()
        except (unreadable, OSError) as error:
            raise SourceError(f"credentials cannot be read: {error}") from error
        return {
            entry["key"]: entry["value"].strip()
            for entry in found.values()
            if entry["in"] == "header" and entry["value"]
        }


def _address_in_cluster() -> str:
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise _no_access(
            "this pod's service account", "KUBERNETES_SERVICE_HOST and _PORT are not set"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _no_access(where: object, why: object) -> ConfigError:
    return ConfigError(
        f"no access to a Kubernetes API by {where}: {why}",
        hint="Give --kubeconfig FILE, or --manifests PATH to work without an API.",
    )


def _kubernetes(module: str) -> Any:
    """A module of the API client, imported when it is needed and not before."""
    return importlib.import_module(f"kubernetes.{module}")


def _load(kubeconfig: Path | None, api_server: str | None) -> Any:
    """A `kubernetes.client.Configuration`. Raises ConfigError."""
    config = _kubernetes("config")
    configuration = _kubernetes("client").Configuration()
    try:
        if kubeconfig is not None:
            config.load_kube_config(
                str(kubeconfig), client_configuration=configuration, persist_config=False
            )
        else:
            _load_service_account(configuration, api_server)
    except (config.ConfigException, OSError, yaml.YAMLError) as error:
        raise _no_access(kubeconfig or "this pod's service account", error) from error
    return configuration


def _load_service_account(configuration: Any, api_server: str | None) -> None:
    """The pod's own credentials; none at all for an address given without them."""
    pod = _kubernetes("config.incluster_config")
    if api_server and not os.path.exists(pod.SERVICE_TOKEN_FILENAME):
        structlog.get_logger().warning("no credentials for the API server", url=api_server)
        return
    environ = dict(os.environ)
    if api_server:  # the usual variables name the address that is being replaced
        environ.setdefault(pod.SERVICE_HOST_ENV_NAME, "replaced")
        environ.setdefault(pod.SERVICE_PORT_ENV_NAME, "443")
    pod.InClusterConfigLoader(
        token_filename=pod.SERVICE_TOKEN_FILENAME,
        cert_filename=pod.SERVICE_CERT_FILENAME,
        environ=environ,
    ).load_and_set(configuration)
