"""Whose an address is: a pod that is some service's endpoint, a node, or at least a pod of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import LbError
from lbctl.addresses import IPV4, family_of, format_address, parse_address
from lbctl.config import standing
from lbctl.config.standing import SourcePlace
from lbctl.model.records import Node
from lbctl.sources import targets, whereabouts
from lbctl.sources.targets import Targets
from lbctl.sources.whereabouts import Ranges

AGAIN_SECONDS: Final = 30.0  # pods come and go
NODES_AGAIN_SECONDS: Final = 300.0
_MOST_REMEMBERED: Final = 100_000  # addresses
POD: Final = "pod"
NODE: Final = "node"


class Place(msgspec.Struct, frozen=True):
    """`name` is namespace/pod, or a node's; empty where it is not known. `kind` is pod, node, or
    empty: somebody else. `interface` leads to a pod of this node that has no name."""

    name: str = ""
    node: str = ""
    kind: str = ""
    interface: str = ""

    @property
    def hint(self) -> str:
        """What is known of a pod without a name, for people."""
        if self.name or self.kind != POD:
            return ""
        by = f" by {self.interface}" if self.interface else ""
        return f"pod on {self.node}{by}"


NOWHERE: Final = Place()


def _no_interface(address: bytes) -> str:
    return ""


class Places:
    """Names by address. Reading them may fail: addresses are enough to go on with."""

    def __init__(
        self,
        node: str = "",
        addresses: frozenset[bytes] = frozenset(),
        read: Callable[[], Targets] | None = None,
        now: Callable[[], float] = time.monotonic,
        *,
        nodes: Iterable[Node] = (),
        read_nodes: Callable[[], list[Node]] | None = None,
        interface_of: Callable[[bytes], str] = _no_interface,
    ) -> None:
        """`node` has these `addresses`; `nodes` are those that are known before they are read."""
        self.node = node
        self.problem = ""
        self._addresses = addresses
        self._read = read
        self._read_nodes = read_nodes
        self._interface_of = interface_of
        self._now = now
        self._known: Targets = {}
        self._nodes: dict[bytes, str] = {}
        self._ranges = Ranges()
        self._take_nodes(nodes)
        self._found: dict[bytes, Place] = {}
        self._missed = self._stranger = True
        self._next = self._next_nodes = float("-inf")

    @classmethod
    def of_agent(cls, pin_dir: Path, kubeconfig: Path | None = None) -> Places:
        """From where the agent of this instance has its objects; names of all pods by the rights of
        `kubeconfig`, if it is given."""
        said = standing.read(pin_dir)
        if said is None:
            return cls(read=lambda: _pods(kubeconfig))
        return cls(
            said.node.name,
            frozenset(said.node.addresses),
            lambda: _read(said.source) | _pods(kubeconfig),
            nodes=[said.object] if said.object else (),
            read_nodes=lambda: _nodes(said.source),
            interface_of=_interface_to,
        )

    def of(self, address: bytes) -> Place:
        """What is known of it."""
        found = self._found.get(address)
        if found is None:
            found = self._find(address)
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[address] = found
        if not found.name:
            self._missed = True
            self._stranger |= not found.kind
        return found

    def named(self, address: str) -> Place:
        """The same of an address as text."""
        return self.of(parse_address(address))

    def refresh(self) -> None:
        """Read the names again, if there was an address without one and it has been a while."""
        now = self._now()
        if self._read is not None and self._missed and now >= self._next:
            self._missed = False
            self._next = now + AGAIN_SECONDS
            self._read_again()
        if self._read_nodes is not None and self._stranger and now >= self._next_nodes:
            self._stranger = False
            self._next_nodes = now + NODES_AGAIN_SECONDS
            self._read_nodes_again()

    def _find(self, address: bytes) -> Place:
        if address in self._addresses:
            return Place(self.node, self.node, NODE)
        # Before endpoints: all pods of the host's network have this address, and so has what is
        # masqueraded.
        if name := self._nodes.get(address):
            return Place(name, name, NODE)
        if (target := self._known.get(address)) is not None:
            return Place(target.name, target.node, POD if target.name else "")
        if node := self._ranges.of(address):
            own = node == self.node
            return Place("", node, POD, self._interface_of(address) if own else "")
        return NOWHERE

    def _read_again(self) -> None:
        assert self._read is not None
        try:
            self._known = self._read()
            self.problem = ""
        except LbError as error:
            self.problem = f"names of pods are not known: {error.message}"
        self._found.clear()

    def _read_nodes_again(self) -> None:
        assert self._read_nodes is not None
        try:
            self._take_nodes(self._read_nodes())
        except LbError as error:
            self.problem = self.problem or f"other nodes are not known: {error.message}"
        self._found.clear()

    def _take_nodes(self, nodes: Iterable[Node]) -> None:
        found = [*nodes]
        self._ranges = Ranges(found)
        self._nodes = {address: node.name for node in found for address in node.internal_ips}


def _place(source: SourcePlace) -> tuple[Path | None, str | None]:
    return Path(source.kubeconfig) if source.kubeconfig else None, source.api_server or None


def _read(source: SourcePlace) -> Targets:
    if source.manifests:
        return targets.of_files(Path(source.manifests))
    return targets.of_api(*_place(source))


def _nodes(source: SourcePlace) -> list[Node]:
    if source.manifests:
        return whereabouts.nodes_of_files(Path(source.manifests))
    return whereabouts.nodes_of_api(*_place(source))


def _pods(kubeconfig: Path | None) -> Targets:
    return whereabouts.pods_of_api(kubeconfig, None) if kubeconfig else {}


def _interface_to(address: bytes) -> str:
    import ipaddress

    from ebpf.kernel import netlink

    text = format_address(address)
    narrow = ipaddress.IPv4Address if family_of(address) == IPV4 else ipaddress.IPv6Address
    return netlink.interface_to(narrow(text))
