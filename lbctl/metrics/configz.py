"""The settings that hold, by the names they have in files: what /configz answers.

kube-proxy answers with its configuration under kubeproxy.config.k8s.io; so do we, with the fields
that mean something here, and with our own document beside it. Paths are named, never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lbctl.addresses import Prefix, format_address
from lbctl.config.agentconfig import API_VERSION, KIND
from lbctl.config.bind import OFF, Bind
from lbctl.config.options import Declared
from lbctl.config.settings import OPTIONS, Settings

KUBE_PROXY: Final = "kubeproxy.config.k8s.io"
OURS: Final = "lbctl"


def document(settings: Settings) -> dict[str, Any]:
    """Both documents."""
    kube_proxy: dict[str, Any] = {}
    ours: dict[str, Any] = {"apiVersion": API_VERSION, "kind": KIND}
    for declared in OPTIONS.values():
        value = _plain(declared, getattr(settings, declared.name))
        if declared.option.field:
            ours[declared.option.field] = value
        elif declared.option.kube_proxy:
            _put(kube_proxy, declared.option.kube_proxy.split("."), value)
    if settings.kubeconfig:  # the flag, which wins over the file's
        _put(kube_proxy, ("clientConnection", "kubeconfig"), str(settings.kubeconfig))
    return {KUBE_PROXY: kube_proxy, OURS: ours}


def _put(into: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        into = into.setdefault(name, {})
    into[path[-1]] = value


def _plain(declared: Declared, value: Any) -> Any:
    if declared.name == "timeouts":
        return dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(declared, item) for item in value]
    if isinstance(value, bytes):
        return format_address(value)
    if isinstance(value, (Bind, Prefix, Path)):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return OFF if value is None and declared.name in ("healthz", "metrics") else value
