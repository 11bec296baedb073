"""The way to an API server: its address, its certificate, and what proves who we are.

A pod needs three files' worth of knowledge for that. Everything else (kubeconfig files with their
contexts and plugins, proxies) is the `kubernetes` package's work, which takes 0.3 s and 17 MB of
every agent that imports it.
"""

from __future__ import annotations

import importlib
import os
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from lbctl.errors import ConfigError, SourceError
from lbctl.sources.smallfiles import read_bounded

if TYPE_CHECKING:
    import urllib3

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60.0  # the kubelet replaces it long before it expires
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
_CONNECTIONS = 4
_LONGEST_TOKEN = 1 << 16
_LONGEST_CERTIFICATE = 1 << 22

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

    def renew(self) -> None:
        """Read everything again, now. Raises SourceError or ConfigError; all stays as it was."""


def find(kubeconfig: Path | None, api_server: str | None) -> Access:
    """By a kubeconfig, else by the pod's service account; `api_server` replaces the address found
    there. Raises ConfigError."""
    if kubeconfig is None and not any(os.environ.get(name) for name in _PROXIES):
        return PodAccess(api_server)
    return PackageAccess(kubeconfig, api_server)


class PodAccess:
    """The service account of the pod this runs in.

    The kubelet swaps its files by links, so that they may be missing or half there at any moment:
    what was read last stays in use, and is read again when it is due or was refused.
    """

    def __init__(self, api_server: str | None, account: Path | None = None) -> None:
        """Without credentials only if the address was given (kubectl proxy needs none), and only
        until there are some."""
        account = account or ACCOUNT
        self._token_file = account / "token"
        self._certificate_file = account / "ca.crt"
        self._may_be_anonymous = bool(api_server)
        self._token = ""
        self._certificate: bytes | None = None
        self._read_at = -_TOKEN_SECONDS
        self._log = structlog.get_logger()
        self.url = (api_server or _address_in_cluster()).rstrip("/")
        if self._may_be_anonymous and not self._token_file.exists():
            self._log.warning("no credentials for the API server", url=self.url)
            self._read_at = time.monotonic()
            self.pool = _pool()
            return
        try:
            self.renew()
        except SourceError as error:
            raise _no_access("this pod's service account", error.message) from error

    def credentials(self) -> dict[str, str]:
        """The last token that could be read; none at all only if there never was one."""
        if time.monotonic() >= self._read_at + _TOKEN_SECONDS:
            try:
                self._read()
            except SourceError as error:
                if self._token or not self._may_be_anonymous:
                    self._log.warning("credentials cannot be read", error=error.message)
            self._read_at = time.monotonic()  # not again with every request
        return {"authorization": f"Bearer {self._token}"} if self._token else {}

    def renew(self) -> None:
        self._read()
        self._read_at = time.monotonic()

    def _read(self) -> None:
        """Take the files over, all or nothing. Raises SourceError."""
        try:
            token = _token(read_bounded(self._token_file, _LONGEST_TOKEN))
            certificate = read_bounded(self._certificate_file, _LONGEST_CERTIFICATE)
        except (OSError, ValueError) as error:
            raise SourceError(f"credentials cannot be read: {error}") from error
        if certificate != self._certificate:
            self.pool = _pool(_trusting(certificate, needed=bool(self._certificate)))
            self._certificate = certificate
        self._token = token


class PackageAccess:
    """What the `kubernetes` package makes of a kubeconfig, or of a pod behind a proxy."""

    def __init__(self, kubeconfig: Path | None, api_server: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._api_server = api_server
        self._configuration: Any = None
        self.url = ""
        self.pool: urllib3.PoolManager
        self.renew()

    def renew(self) -> None:
        found = _load(self._kubeconfig, self._api_server)
        if self._configuration is not None and not self._headers(found) and self._headers():
            raise SourceError("there are no credentials any more")
        found.retries = False
        found.socket_options = _KEEPALIVE
        found.connection_pool_maxsize = _CONNECTIONS
        try:
            client = _kubernetes("client.rest").RESTClientObject(found)
        except (OSError, ValueError) as error:  # its certificates
            raise _no_access(self._kubeconfig or "this pod's service account", error) from error
        self.pool = client.pool_manager
        self._configuration = found
        # Kept here, since reading a token again puts the configuration's own address back.
        self.url = (self._api_server or str(found.host)).rstrip("/")

    def credentials(self) -> dict[str, str]:
        return self._headers()

    def _headers(self, configuration: Any = None) -> dict[str, str]:
        configuration = configuration or self._configuration
        try:
            found = configuration.auth_settings()
        except _package_failures() as error:
            raise SourceError(f"credentials cannot be read: {error}") from error
        return {
            entry["key"]: entry["value"].strip()
            for entry in found.values()
            if entry["in"] == "header" and entry["value"]
        }


def _pool(context: ssl.SSLContext | None = None) -> urllib3.PoolManager:
    import urllib3

    return urllib3.PoolManager(
        maxsize=_CONNECTIONS,
        retries=False,
        socket_options=_KEEPALIVE,
        cert_reqs="CERT_REQUIRED",
        ssl_context=context,
    )


def _trusting(certificate: bytes, *, needed: bool) -> ssl.SSLContext:
    """Trust in these authorities alone. Read now, not when a connection is made: their file may be
    away then. What is no certificate trusts nobody, or raises SourceError where it is `needed`."""
    from urllib3.util import create_urllib3_context

    context = create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    try:
        context.load_verify_locations(cadata=certificate.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError) as error:
        if needed:
            raise SourceError(f"ca.crt holds no certificate: {error}") from error
        structlog.get_logger().warning("ca.crt holds no certificate: no server is trusted")
    return context


def _token(data: bytes) -> str:
    """Raises ValueError for what cannot be sent as one."""
    token = data.decode("ascii", errors="replace").strip()
    if not token:
        raise ValueError("the token is empty")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ValueError("the token is not text of one line")
    return token


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
        f"no access to a Kubernetes API with {where}: {why}",
        hint="Give --kubeconfig FILE, or --manifests PATH to work without an API.",
    )


def _kubernetes(module: str) -> Any:
    """A module of the API client, imported when it is needed and not before."""
    return importlib.import_module(f"kubernetes.{module}")


def _package_failures() -> tuple[type[Exception], ...]:
    """What the package says about files, and what it trips over when they hold something else."""
    import yaml

    named = _kubernetes("config").ConfigException
    return (
        named,
        OSError,
        yaml.YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    )


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
    except _package_failures() as error:
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
