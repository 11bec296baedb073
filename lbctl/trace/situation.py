"""The node a question is about: from its object, a kube-proxy configuration and the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from lbctl.addresses import Prefix, parse_address, parse_prefix
from lbctl.config import file as configfile
from lbctl.config.file import ConfigFile
from lbctl.errors import UsageError
from lbctl.model.records import Node
from lbctl.resolve.node import NodeFacts, node_facts


def node(
    nodes: Mapping[str, Node],
    name: str,
    config: Path | None,
    local_ips: Sequence[str],
    service_cidrs: Sequence[str],
    say: Callable[[str], None],
) -> NodeFacts:
    """Facts about the node called `name`, or what `config` calls it, if that is empty.

    What is missing or ignored is told to `say`. Raises ConfigError, UsageError.
    """
    file = configfile.read(config) if config is not None else ConfigFile()
    read = file.kube_proxy
    if read.ignored:
        say(f"fields of --config that mean nothing here: {', '.join(read.ignored)}")
    name = name or read.hostname_override or _only(nodes)
    if name not in nodes:
        known = f": there is {', '.join(sorted(nodes))}" if nodes else ""
        say(f"no Node object is called {name}{known}; addresses and zone are unknown")
    settings = msgspec.structs.replace(
        read.settings,
        service_cidrs=tuple(_prefix(t) for t in service_cidrs) or file.agent.service_prefixes,
    )
    return node_facts(name, nodes.get(name), [_address(ip) for ip in local_ips], settings)


def _only(nodes: Mapping[str, Node]) -> str:
    if len(nodes) == 1:
        return next(iter(nodes))
    known = f" One of: {', '.join(sorted(nodes))}." if nodes else ""
    raise UsageError("--node-name is missing", f"Say on which node the flow is.{known}")


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"--local-ip: {error}") from error


def _prefix(text: str) -> Prefix:
    try:
        return parse_prefix(text)
    except ValueError as error:
        raise UsageError(f"--service-cidr: {error}") from error
