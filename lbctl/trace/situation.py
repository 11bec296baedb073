"""The node a question is about: from its object, a kube-proxy configuration and the options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lbctl.addresses import parse_address
from lbctl.config import file as configfile
from lbctl.config import settle
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
    ignored = settle.ignored(file)
    if ignored:
        say(f"fields of --config that have no effect here: {', '.join(ignored)}")
    found = settle.settle(settle.from_command_line(service_cidrs=tuple(service_cidrs)), file)
    name = name or found.node_name or _only(nodes)
    if name not in nodes:
        known = f" (there are: {', '.join(sorted(nodes))})" if nodes else ""
        say(f"there is no Node object {name}{known}; its addresses and zone are unknown")
    return node_facts(name, nodes.get(name), [_address(ip) for ip in local_ips], found.node)


def _only(nodes: Mapping[str, Node]) -> str:
    if len(nodes) == 1:
        return next(iter(nodes))
    known = f" One of: {', '.join(sorted(nodes))}." if nodes else ""
    raise UsageError("--node-name is missing", f"Say which node to answer for.{known}")


def _address(text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise UsageError(f"--local-ip: {error}") from error
