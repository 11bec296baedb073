"""Which of those who say something about a setting is right, and what a change of it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from lbctl.addresses import IPV4, IPV6, Prefix, of_family
from lbctl.config.file import ConfigFile
from lbctl.config.kubeproxyconfig import KubeProxyConfig
from lbctl.config.options import Declared
from lbctl.config.settings import OPTIONS, Settings
from lbctl.errors import ConfigError, UsageError

# The programs keep as many of each family (bpf_src/consts.h), and look through all of them.
MOST_RANGES = 4

# What one of them says, by the names in Settings. A name that is not there: it says nothing.
Said = Mapping[str, Any]


def from_command_line(**given: Any) -> Said:
    """From the values of flags, by the names in Settings; None and () are flags that
    were not given. Raises UsageError for one without sense."""
    said = {}
    for name, written in given.items():
        if written is None or written == ():
            continue
        value = _value(OPTIONS[name], written)
        if value != "":  # as a variable of a pod that is there and empty
            said[name] = value
    return said


def _value(declared: Declared, written: Any) -> Any:
    option = declared.option
    if option.commas:
        written = [part for text in written for part in text.split(",")]
    try:
        return declared.value(written, lambda index: option.flag)
    except ValueError as error:
        raise UsageError(str(error)) from error


def settle(flags: Said, file: ConfigFile) -> Settings:
    """Flags win over the file, field by field, and in it our own document over kube-proxy's.
    Raises UsageError or ConfigError for more ranges than there is room for."""
    said = {**_from_kube_proxy(file.kube_proxy), **file.agent, **flags}
    # What the command line says about pods is not overruled by the Node object.
    if "cluster_cidrs" in flags:
        said.pop("pods_from_node_cidrs", None)
    # Nor what it says about the place of the objects by a cluster in the file.
    if "manifests" in flags or "kubeconfig" in flags:
        said.pop("file_kubeconfig", None)
    if "manifests" in flags and "api_server" not in flags:
        said.pop("api_server", None)
    found = Settings(**said)
    for name in ("service_cidrs", "cluster_cidrs"):
        _few_enough(OPTIONS[name], getattr(found, name), name in flags)
    return found


def _few_enough(declared: Declared, ranges: tuple[Prefix, ...], by_flag: bool) -> None:
    fault = UsageError if by_flag else ConfigError
    for family in (IPV4, IPV6):
        count = len(of_family(ranges, family))
        if count > MOST_RANGES:
            raise fault(
                f"{declared.option.flag if by_flag else declared.in_file} names {count} ranges "
                f"of IPv{family}",
                hint=f"The programs know up to {MOST_RANGES} ranges per family.",
            )


def _from_kube_proxy(file: KubeProxyConfig) -> Said:
    found = msgspec.structs.asdict(file.node) | msgspec.structs.asdict(file)
    return {name: value for name, value in found.items() if name in OPTIONS and value}


def ignored(file: ConfigFile) -> tuple[str, ...]:
    """Fields of the file that hold something and mean nothing, sorted."""
    return tuple(sorted(file.kube_proxy.ignored))


def taken_over(before: Settings, after: Settings) -> list[str]:
    """Names of the fields that differ and that a running agent can change."""
    return _differing(before, after, live=True)


def waiting_for_restart(started: Settings, now: Settings) -> list[str]:
    """Names of the fields that differ from what the agent was started with, for good."""
    return _differing(started, now, live=False)


def _differing(before: Settings, after: Settings, live: bool) -> list[str]:
    return [
        declared.in_file
        for name, declared in OPTIONS.items()
        if declared.option.live is live and getattr(before, name) != getattr(after, name)
    ]
