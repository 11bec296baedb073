"""KubeProxyConfiguration v1alpha1: what we take over from the file a cluster has for kube-proxy.

docs/configuration.md lists every field of it and what becomes of it here.
"""

from __future__ import annotations

import glob
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lbctl.addresses import FAMILIES, IPV6, Prefix, family_of, loopback, parse_address, parse_prefix
from lbctl.config.bind import (
    ANY4,
    ANY6,
    HEALTHZ_PORT,
    LOOPBACK6,
    METRICS_PORT,
    Bind,
    parse_bind,
)
from lbctl.durations import parse_duration
from lbctl.errors import ConfigError
from lbctl.fieldnames import explain
from lbctl.model.balancing import SCHEDULERS
from lbctl.model.records import ALGORITHMS
from lbctl.resolve.node import LOCALHOST, PRIMARY, NodeSettings, parse_nodeport_addresses

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

_MODES = ("", "iptables", "nftables", "ipvs")
_LOCAL_MODES = ("", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
_EVERY_ADDRESS = ("0.0.0.0/0", "::/0")


class _Section(msgspec.Struct, frozen=True, rename="camel"):
    """A part of the file. kube-proxy writes unset fields as null, zero or empty."""


class _Masquerade(_Section, frozen=True, rename="camel"):
    """What the sections iptables and nftables share; ipvs has none of its own."""

    masquerade_all: bool = False


class _Iptables(_Masquerade, frozen=True, rename="camel"):
    localhost_node_ports: bool | None = None


class _Ipvs(_Section, frozen=True, rename="camel"):
    scheduler: str | None = None


class _DetectLocal(_Section, frozen=True, rename="camel"):
    bridge_interface: str | None = None
    interface_name_prefix: str | None = None


class _Client(_Section, frozen=True, rename="camel"):
    kubeconfig: str | None = None


class _Conntrack(_Section, frozen=True, rename="camel"):
    tcp_established_timeout: str | None = None
    tcp_close_wait_timeout: str | None = None
    udp_timeout: str | None = None
    udp_stream_timeout: str | None = None


# Of `conntrack`: the timeout of the data path (lbctl/program/config.py) that each one sets.
_TIMEOUTS = {
    "tcpEstablishedTimeout": "established_timeout",
    "tcpCloseWaitTimeout": "closing_timeout",
    "udpTimeout": "datagram_timeout",
    "udpStreamTimeout": "datagram_stream_timeout",
}


class _File(_Section, frozen=True, rename="camel"):
    """The fields we read."""

    api_version: str
    kind: str
    bind_address: str | None = None
    healthz_bind_address: str | None = None
    client_connection: _Client | None = None
    cluster_cidr: str | None = msgspec.field(default=None, name="clusterCIDR")
    conntrack: _Conntrack | None = None
    detect_local: _DetectLocal | None = None
    detect_local_mode: str | None = None
    hostname_override: str | None = None
    iptables: _Iptables | None = None
    ipvs: _Ipvs | None = None
    metrics_bind_address: str | None = None
    mode: str | None = None
    nftables: _Masquerade | None = None
    node_port_addresses: list[str] | None = None


class KubeProxyConfig(msgspec.Struct, frozen=True):
    """What a file says, by the names that Settings and NodeSettings have for it. Empty and None: it
    does not say.

    `timeouts` are in seconds, by the names of the config record. `pod_interfaces` are patterns.
    `ignored` are the fields with a value that mean nothing here, as dotted paths, sorted.
    """

    node: NodeSettings = NodeSettings()
    node_name: str = ""
    mode: str = ""
    file_kubeconfig: Path | None = None
    healthz: Bind | None = None
    metrics: Bind | None = None
    timeouts: tuple[tuple[str, float], ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def parse(value: object) -> KubeProxyConfig:
    """From parsed YAML. Raises ConfigError naming the field."""
    try:
        file = msgspec.convert(value, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error), f"Expected is a {KIND} of {API_VERSION}.") from error
    if (file.api_version, file.kind) != (API_VERSION, KIND):
        raise ConfigError(
            f"apiVersion and kind are {file.api_version} {file.kind}",
            f"Expected is a {KIND} of {API_VERSION}.",
        )
    mode = _one_of("mode", file.mode, _MODES)
    local_mode = _one_of("detectLocalMode", file.detect_local_mode, _LOCAL_MODES)
    bind = _address(file.bind_address)
    scheduler = _scheduler(file, mode)
    node = NodeSettings(
        cluster_cidrs=_cluster_cidrs(file.cluster_cidr),
        nodeport_addresses=_nodeport_addresses(file, mode),
        masquerade_all=_masquerade_all(file, mode),
        pods_from_node_cidrs=local_mode == "NodeCIDR",
        primary_addresses=() if bind in (None, ANY4, ANY6) else (bind,),
        algorithm=SCHEDULERS.get(scheduler, ALGORITHMS[0]),
    )
    unread = list(_unread(value, _File))
    if scheduler and scheduler not in SCHEDULERS:
        unread.append("ipvs.scheduler")
    return KubeProxyConfig(
        node=node,
        node_name=(file.hostname_override or "").strip().lower(),
        mode=mode,
        file_kubeconfig=_kubeconfig(file.client_connection),
        healthz=_healthz(file.healthz_bind_address, bind),
        metrics=_metrics(file.metrics_bind_address, bind),
        timeouts=tuple(_timeouts(file.conntrack)),
        pod_interfaces=_pod_interfaces(local_mode, file.detect_local or _DetectLocal()),
        ignored=tuple(sorted(unread)),
    )


def _kubeconfig(section: _Client | None) -> Path | None:
    return Path(section.kubeconfig) if section and section.kubeconfig else None


def _cluster_cidrs(text: str | None) -> tuple[Prefix, ...]:
    """One network, or one of each family with a comma between."""
    try:
        return tuple(parse_prefix(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"clusterCIDR: {error}") from error


def _nodeport_addresses(file: _File, mode: str) -> tuple[str, ...] | None:
    """Unset, kube-proxy's iptables and IPVS modes serve node ports on all addresses."""
    listed = tuple(file.node_port_addresses or ())
    places = parse_nodeport_addresses(listed)
    if not listed and mode in ("iptables", "ipvs"):
        listed = _EVERY_ADDRESS
    if not _localhost_node_ports(file, mode, places.networks):
        return listed or None
    return (*(listed or (PRIMARY,)), LOCALHOST)


def _localhost_node_ports(file: _File, mode: str, networks: tuple[Prefix, ...]) -> bool:
    """Only if the file says so: kube-proxy's own default is true, where it is of iptables mode, but
    files have it as null. Nor where nodePortAddresses leaves loopback out."""
    if mode == "nftables" or file.iptables is None or not file.iptables.localhost_node_ports:
        return False
    return not networks or any(loopback(f) in n for f in FAMILIES for n in networks)


def _masquerade_all(file: _File, mode: str) -> bool:
    """Of the mode's own section (IPVS uses that of iptables); of either if no mode is named."""
    by_iptables = file.iptables is not None and file.iptables.masquerade_all
    by_nftables = file.nftables is not None and file.nftables.masquerade_all
    if mode == "nftables":
        return by_nftables
    return by_iptables or (not mode and by_nftables)


def _scheduler(file: _File, mode: str) -> str:
    """In the other modes kube-proxy does not look at it."""
    return (file.ipvs.scheduler or "") if file.ipvs and mode in ("", "ipvs") else ""


def _address(text: str | None) -> bytes | None:
    try:
        return parse_address(text) if text else None
    except ValueError as error:
        raise ConfigError(f"bindAddress: {error}") from error


def _healthz(text: str | None, bind: bytes | None) -> Bind | None:
    return _bind("healthzBindAddress", text, bind, Bind(ANY6, HEALTHZ_PORT, both=True))


def _metrics(text: str | None, bind: bytes | None) -> Bind | None:
    return _bind("metricsBindAddress", text, bind, Bind(LOOPBACK6, METRICS_PORT))


def _bind(field: str, text: str | None, bind: bytes | None, of_ipv6: Bind) -> Bind | None:
    """Unset, kube-proxy takes the family of bindAddress."""
    try:
        if text:
            return parse_bind(text, of_ipv6.port)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from error
    return of_ipv6 if bind and family_of(bind) == IPV6 else None


def _timeouts(section: _Conntrack | None) -> Iterator[tuple[str, float]]:
    """Those that are set. Zero means "leave it", for kube-proxy as for us."""
    given = msgspec.to_builtins(section) if section else {}
    for field, name in _TIMEOUTS.items():
        try:
            seconds = parse_duration(given.get(field) or "0")
        except ValueError as error:
            raise ConfigError(f"conntrack.{field}: {error}") from error
        if seconds:
            yield name, seconds


def _pod_interfaces(mode: str, found: _DetectLocal) -> tuple[str, ...]:
    """Ports of a bridge are found by themselves; programs on the bridge itself would miss what it
    switches between them."""
    if mode == "BridgeInterface" and not found.bridge_interface:
        raise ConfigError("detectLocal.bridgeInterface: detectLocalMode BridgeInterface needs it")
    if mode != "InterfaceNamePrefix":
        return ()
    if not found.interface_name_prefix:
        raise ConfigError(
            "detectLocal.interfaceNamePrefix: detectLocalMode InterfaceNamePrefix needs it"
        )
    return (f"{glob.escape(found.interface_name_prefix)}*",)


def _one_of(name: str, value: str | None, known: tuple[str, ...]) -> str:
    if (value or "") not in known:
        raise ConfigError(f"{name}: {value!r} is unknown", f"Known: {', '.join(known[1:])}.")
    return value or ""


def _unread(value: Any, section: type[_Section]) -> Iterator[str]:
    """Paths of fields that hold something and are not read."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(section)}
    for name, content in value.items():
        inner = _section_of(known[name]) if name in known else None
        if inner is not None and isinstance(content, dict):
            yield from (f"{name}.{path}" for path in _unread(content, inner))
        elif name not in known and _says(content):
            yield str(name)


def _section_of(annotation: Any) -> type[_Section] | None:
    """The section in `Section | None`."""
    for part in typing.get_args(annotation):
        if isinstance(part, type) and issubclass(part, _Section):
            return part
    return None


def _says(content: object) -> bool:
    """Whether a value is more than kube-proxy's way to write "unset"."""
    if isinstance(content, dict):
        return any(_says(v) for v in content.values())
    return content not in (None, "", 0, False, "0", "0s") and content != []
