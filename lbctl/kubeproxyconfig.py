"""KubeProxyConfiguration v1alpha1: what we take over from the file a cluster has for kube-proxy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import yaml

from lbctl.addresses import Prefix, parse_prefix
from lbctl.errors import ConfigError
from lbctl.node import PRIMARY, NodeSettings, parse_nodeport_addresses

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

_MODES = ("", "iptables", "nftables", "ipvs")
_LOCAL_MODES = ("", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix")
_EVERY_ADDRESS = ("0.0.0.0/0", "::/0")
_AT = re.compile(r"(?P<what>.*) - at `\$\.?(?P<path>.*)`", re.DOTALL)


class _Masquerade(msgspec.Struct, frozen=True, rename="camel"):
    """The parts that the sections iptables and nftables share."""

    masquerade_all: bool = False


class _File(msgspec.Struct, frozen=True, rename="camel"):
    """The fields we read. kube-proxy writes unset ones as null or empty."""

    api_version: str
    kind: str
    cluster_cidr: str | None = msgspec.field(default=None, name="clusterCIDR")
    node_port_addresses: list[str] | None = None
    mode: str | None = None
    detect_local_mode: str | None = None
    hostname_override: str | None = None
    iptables: _Masquerade | None = None
    nftables: _Masquerade | None = None


class KubeProxyConfig(msgspec.Struct, frozen=True):
    """What a file says, in our words. `ignored` are the fields with a value that mean nothing here,
    as dotted paths, sorted."""

    settings: NodeSettings = NodeSettings()
    hostname_override: str = ""
    mode: str = ""
    ignored: tuple[str, ...] = ()


def load(path: Path) -> KubeProxyConfig:
    """Reads a file (YAML or JSON, also the kubeadm ConfigMap's `config.conf`).

    Raises ConfigError naming file and field.
    """
    try:
        value = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not YAML: {error}") from error
    try:
        return parse(value)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error.message}", error.hint) from error


def parse(value: object) -> KubeProxyConfig:
    """The same from parsed YAML. Raises ConfigError naming the field."""
    try:
        file = msgspec.convert(value, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(error), f"Expected is a {KIND} of {API_VERSION}.") from error
    if (file.api_version, file.kind) != (API_VERSION, KIND):
        raise ConfigError(
            f"apiVersion and kind are {file.api_version} {file.kind}",
            f"Expected is a {KIND} of {API_VERSION}.",
        )
    mode = _one_of("mode", file.mode, _MODES)
    local_mode = _one_of("detectLocalMode", file.detect_local_mode, _LOCAL_MODES)
    settings = NodeSettings(
        cluster_cidrs=_cluster_cidrs(file.cluster_cidr),
        nodeport_addresses=_nodeport_addresses(file.node_port_addresses, mode),
        masquerade_all=_masquerade_all(file, mode),
        pods_from_node_cidrs=local_mode == "NodeCIDR",
    )
    return KubeProxyConfig(
        settings, file.hostname_override or "", mode, tuple(sorted(_unknown(value)))
    )


def _cluster_cidrs(text: str | None) -> tuple[Prefix, ...]:
    """One network, or one of each family with a comma between."""
    try:
        return tuple(parse_prefix(part) for part in (text or "").split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"clusterCIDR: {error}") from error


def _nodeport_addresses(listed: list[str] | None, mode: str) -> tuple[str, ...] | None:
    """Unset, kube-proxy's iptables and IPVS modes serve node ports on all addresses."""
    if not listed:
        return _EVERY_ADDRESS if mode in ("iptables", "ipvs") else None
    if listed != [PRIMARY]:
        parse_nodeport_addresses(listed)
    return tuple(listed)


def _masquerade_all(file: _File, mode: str) -> bool:
    """Of the mode's own section (IPVS uses that of iptables); of either if no mode is named."""
    by_iptables = file.iptables is not None and file.iptables.masquerade_all
    by_nftables = file.nftables is not None and file.nftables.masquerade_all
    if mode == "nftables":
        return by_nftables
    return by_iptables or (not mode and by_nftables)


def _one_of(name: str, value: str | None, known: tuple[str, ...]) -> str:
    if (value or "") not in known:
        raise ConfigError(f"{name}: {value!r} is unknown", f"Known: {', '.join(known[1:])}.")
    return value or ""


def _unknown(value: Any) -> list[str]:
    """Fields that hold something and are not read."""
    found = []
    for name, content in value.items():
        if name in ("iptables", "nftables") and isinstance(content, dict):
            inner = msgspec.structs.fields(_Masquerade)
            known = {field.encode_name for field in inner}
            found += [f"{name}.{k}" for k, v in content.items() if k not in known and _says(v)]
        elif name not in _KNOWN and _says(content):
            found.append(str(name))
    return found


_KNOWN = {field.encode_name for field in msgspec.structs.fields(_File)}


def _says(content: object) -> bool:
    """Whether a value is more than kube-proxy's way to write "unset"."""
    if isinstance(content, dict):
        return any(_says(v) for v in content.values())
    return content not in (None, "", 0, False, "0s") and content != []


def _explain(error: msgspec.ValidationError) -> str:
    """`iptables.masqueradeAll: expected bool, got str`."""
    match = _AT.fullmatch(str(error))
    what, path = (match["what"], match["path"]) if match else (str(error), "")
    what = what.replace("`", "")
    what = what[:1].lower() + what[1:]
    return f"{path}: {what}" if path else what
