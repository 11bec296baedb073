"""What the agent goes by: the command line over the file over the defaults."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lbctl.addresses import Prefix, parse_prefix
from lbctl.config.bind import OFF, Bind, parse_bind
from lbctl.config.file import ConfigFile
from lbctl.config.kubeproxyconfig import HEALTHZ_PORT
from lbctl.errors import UsageError
from lbctl.resolve.node import NodeSettings

DEFAULT_HEALTHZ = f"0.0.0.0:{HEALTHZ_PORT}"


class Flags(msgspec.Struct, frozen=True):
    """What the command line says of things that a file may say too. None, empty: nothing."""

    node_name: str | None = None
    manifests: Path | None = None
    kubeconfig: Path | None = None
    api_server: str | None = None
    uplinks: tuple[str, ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    cluster_cidrs: tuple[str, ...] = ()
    healthz_bind_address: str | None = None
    services: int | None = None
    endpoints: int | None = None
    flows: int | None = None
    takeover: str | None = None
    socket_lb: str | None = None
    log_format: str | None = None


class Settings(msgspec.Struct, frozen=True):
    """What holds. `healthz` None: no /healthz. `timeouts` are in seconds, by their names in
    nodeconfig. An empty `node_name` means the host's name, `file_kubeconfig` is the file's wish."""

    node: NodeSettings
    timeouts: tuple[tuple[str, float], ...]
    uplinks: tuple[str, ...]
    pod_interfaces: tuple[str, ...]
    healthz: Bind | None
    node_name: str = ""
    kubeconfig: Path | None = None
    file_kubeconfig: Path | None = None
    api_server: str | None = None
    services: int | None = None
    endpoints: int | None = None
    flows: int | None = None
    takeover: str = "auto"
    socket_lb: str = "host"
    log_format: str = "text"


# What a running agent takes over from a changed file, and what only its next start does: our names
# with those in the file.
_NODE_FIELDS = {
    "cluster_cidrs": "clusterCIDR",
    "service_cidrs": "serviceCIDRs",
    "nodeport_addresses": "nodePortAddresses",
    "masquerade_all": "masqueradeAll",
    "pods_from_node_cidrs": "detectLocalMode",
    "primary_addresses": "bindAddress",
}
_LIVE_FIELDS = {
    "timeouts": "conntrack",
    "uplinks": "uplinks",
    "pod_interfaces": "podInterfaces",
    "healthz": "healthzBindAddress",
}
_START_FIELDS = {
    "node_name": "hostnameOverride",
    "file_kubeconfig": "clientConnection.kubeconfig",
    "api_server": "apiServer",
    "services": "services",
    "endpoints": "endpoints",
    "flows": "flows",
    "takeover": "takeover",
    "socket_lb": "socketLB",
    "log_format": "logFormat",
}


def settle(flags: Flags, file: ConfigFile) -> Settings:
    """Flags win over the file, field by field. Raises UsageError for a flag without sense."""
    said, own = file.kube_proxy, file.agent
    node = msgspec.structs.replace(
        said.settings,
        service_cidrs=_prefixes("--service-cidr", flags.service_cidrs) or own.service_prefixes,
        cluster_cidrs=(
            _prefixes("--cluster-cidr", flags.cluster_cidrs) or said.settings.cluster_cidrs
        ),
        # What the command line says about pods is not overruled by the Node object.
        pods_from_node_cidrs=said.settings.pods_from_node_cidrs and not flags.cluster_cidrs,
    )
    elsewhere = flags.manifests or flags.kubeconfig
    return Settings(
        node=node,
        timeouts=said.timeouts,
        uplinks=flags.uplinks or own.uplinks,
        pod_interfaces=flags.pod_interfaces or own.pod_interfaces or said.pod_interfaces,
        healthz=_healthz(flags.healthz_bind_address, said.healthz),
        node_name=flags.node_name or said.hostname_override,
        kubeconfig=flags.kubeconfig,
        file_kubeconfig=Path(said.kubeconfig) if said.kubeconfig and not elsewhere else None,
        api_server=flags.api_server or (None if flags.manifests else own.api_server),
        services=flags.services or own.services,
        endpoints=flags.endpoints or own.endpoints,
        flows=flags.flows or own.flows,
        takeover=flags.takeover or own.takeover or "auto",
        socket_lb=flags.socket_lb or own.socket_lb or "host",
        log_format=flags.log_format or own.log_format or "text",
    )


def ignored(file: ConfigFile) -> tuple[str, ...]:
    """Fields of the file that hold something and mean nothing, sorted."""
    return tuple(sorted(file.kube_proxy.ignored))


def taken_over(before: Settings, after: Settings) -> list[str]:
    """Names of the fields that differ and that a running agent can change."""
    return _differing(before.node, after.node, _NODE_FIELDS) + _differing(
        before, after, _LIVE_FIELDS
    )


def waiting_for_restart(started: Settings, now: Settings) -> list[str]:
    """Names of the fields that differ from what the agent was started with, for good."""
    return _differing(started, now, _START_FIELDS)


def _differing(before: object, after: object, fields: dict[str, str]) -> list[str]:
    return [name for own, name in fields.items() if getattr(before, own) != getattr(after, own)]


def _healthz(flag: str | None, said: Bind | None) -> Bind | None:
    if flag is not None and flag in (OFF, ""):
        return None
    if flag is None and said is not None:
        return said
    try:
        return parse_bind(flag or DEFAULT_HEALTHZ, HEALTHZ_PORT)
    except ValueError as error:
        raise UsageError(f"--healthz-bind-address: {error}", f'Or "{OFF}".') from error


def _prefixes(option: str, texts: Iterable[str]) -> tuple[Prefix, ...]:
    try:
        return tuple(parse_prefix(part) for text in texts for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
