"""Where addresses are that are no endpoint's: nodes and their ranges of pods; and pods themselves,
for those who may list them, which agents may not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from lbctl.addresses import Prefix, parse_address
from lbctl.model.fields import InvalidField, Remarks
from lbctl.model.records import Node
from lbctl.model.wirenode import WireNode
from lbctl.sources import documents, targets
from lbctl.sources.targets import ListMetadata, Target, Targets

_NODES: Final = "/api/v1/nodes"
_PODS: Final = "/api/v1/pods"
_LIVING: Final = ("Running", "Pending")


class _Nodes(msgspec.Struct):
    metadata: ListMetadata
    items: list[WireNode] | None = None


class _PodIP(msgspec.Struct):
    ip: str = ""


class _PodStatus(msgspec.Struct, rename="camel"):
    phase: str = ""
    pod_ips: list[_PodIP] | None = msgspec.field(default=None, name="podIPs")


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    host_network: bool = False


class _PodMetadata(msgspec.Struct):
    name: str
    namespace: str = "default"


class Pod(msgspec.Struct):
    """As much of one as names need."""

    metadata: _PodMetadata
    spec: _PodSpec
    status: _PodStatus

    @property
    def addresses(self) -> list[bytes]:
        """Its own: none if those are the node's, or it has ended."""
        if self.spec.host_network or self.status.phase not in _LIVING:
            return []
        return [parse_address(entry.ip) for entry in self.status.pod_ips or () if entry.ip]


class _Pods(msgspec.Struct):
    metadata: ListMetadata
    items: list[Pod] | None = None


class Ranges:
    """Whose range of pods an address is in, of thousands of nodes."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._by_length: dict[int, dict[int, str]] = {}
        for node in nodes:
            for prefix in node.pod_cidrs:
                self._add(prefix, node.name)

    def of(self, address: bytes) -> str:
        """The node's name; empty if it is in none."""
        number = int.from_bytes(address, "big")
        for length, names in self._by_length.items():
            if found := names.get(number >> (128 - length)):
                return found
        return ""

    def _add(self, prefix: Prefix, name: str) -> None:
        number = int.from_bytes(prefix.address, "big") >> (128 - prefix.length)
        self._by_length.setdefault(prefix.length, {})[number] = name


def nodes_of_files(path: Path) -> list[Node]:
    """Those that can be read. Raises SourceError if nothing can be."""
    return [
        value
        for file in documents.manifest_files(path)
        for value in documents.read_file(file).objects
        if isinstance(value, Node)
    ]


def nodes_of_api(kubeconfig: Path | None, api_server: str | None) -> list[Node]:
    """All of them. Raises SourceError, HttpError, ConfigError."""
    return [
        node
        for page in targets.pages(kubeconfig, api_server, _NODES, _Nodes)
        for node in _readable(page.items or ())
    ]


def _readable(items: Iterable[WireNode]) -> Iterator[Node]:
    for item in items:
        try:
            yield item.to_model("", Remarks())
        except InvalidField:
            continue  # what is wrong with it, the agent says


def pods_of_api(kubeconfig: Path | None, api_server: str | None) -> Targets:
    """By address. Raises SourceError, HttpError (403: who asks may not list them), ConfigError."""
    found: Targets = {}
    for page in targets.pages(kubeconfig, api_server, _PODS, _Pods):
        for pod in page.items or ():
            name = f"{pod.metadata.namespace}/{pod.metadata.name}"
            found.update(dict.fromkeys(pod.addresses, Target(name, pod.spec.node_name)))
    return found


def pod_of_api(kubeconfig: Path | None, api_server: str | None, namespace: str, name: str) -> Pod:
    """One by its name. Raises SourceError, HttpError (404, 403), ConfigError."""
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
    return targets.read(kubeconfig, api_server, path, Pod)
