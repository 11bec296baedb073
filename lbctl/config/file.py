"""The file behind --config: a KubeProxyConfiguration, an AgentConfiguration, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lbctl.config import agentconfig, kubeproxyconfig
from lbctl.config.kubeproxyconfig import KubeProxyConfig
from lbctl.errors import ConfigError
from lbctl.fieldnames import near

_KINDS = (kubeproxyconfig.KIND, agentconfig.KIND)


class ConfigFile(msgspec.Struct, frozen=True):
    """Both documents; one that is not there says nothing. `agent` is by the names in Settings."""

    kube_proxy: KubeProxyConfig = KubeProxyConfig()
    agent: dict[str, Any] = {}


def read(path: Path) -> ConfigFile:
    """Reads a file of YAML or JSON, also the `config.conf` of kubeadm's ConfigMap as it is.

    Raises ConfigError naming file and field.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    try:
        return parse(data)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error.message}", error.hint) from error


def parse(data: bytes) -> ConfigFile:
    """The same from its content."""
    import yaml  # without a file an agent has no need of it

    try:
        documents = [found for found in yaml.safe_load_all(data) if found is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {error}") from error
    by_kind: dict[str, Any] = {}
    for document in documents:
        kind = _kind(document)
        if kind in by_kind:
            raise ConfigError(f"two documents have the kind {kind}", "One of each kind is enough.")
        by_kind[kind] = document
    if not by_kind:
        raise ConfigError("it is empty", f"Expected is a {_KINDS[0]}, an {_KINDS[1]}, or both.")
    file = ConfigFile()
    for kind, document in by_kind.items():
        if kind == agentconfig.KIND:
            file = msgspec.structs.replace(file, agent=agentconfig.parse(document))
        else:
            file = msgspec.structs.replace(file, kube_proxy=kubeproxyconfig.parse(document))
    return file


def _kind(document: object) -> str:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind in _KINDS:
        return str(kind)
    if kind == "ConfigMap":
        raise ConfigError(
            "this is the ConfigMap; the file is what it holds",
            "kubectl -n kube-system get configmap kube-proxy -o jsonpath='{.data.config\\.conf}'",
        )
    if not isinstance(document, dict):
        raise ConfigError("a document is no object with apiVersion and kind")
    raise ConfigError(f"kind: {kind!r} is unknown", near(str(kind), _KINDS))
