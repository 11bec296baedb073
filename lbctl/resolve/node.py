"""What resolving needs to know of the node the agent runs on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from lbctl.addresses import (
    FAMILIES,
    IPV4,
    Prefix,
    family_of,
    is_link_local,
    is_loopback,
    of_family,
    parse_prefix,
)
from lbctl.errors import ConfigError
from lbctl.model.records import Node

PRIMARY = "primary"  # KubeProxyConfiguration's word for "the node's primary addresses"

EXCLUDE_TAINTS = frozenset({"ToBeDeletedByClusterAutoscaler"})


class NodeSettings(msgspec.Struct, frozen=True):
    """What an operator may say about a node, in the words of KubeProxyConfiguration.

    `nodeport_addresses`: None, networks in CIDR notation, or the word "primary". None means what
    "primary" means (the default of kube-proxy's nftables mode).
    """

    cluster_cidrs: tuple[Prefix, ...] = ()
    service_cidrs: tuple[Prefix, ...] = ()
    nodeport_addresses: tuple[str, ...] | None = None
    masquerade_all: bool = False
    pods_from_node_cidrs: bool = False  # detectLocalMode: NodeCIDR
    primary_addresses: tuple[bytes, ...] = ()  # instead of what the Node object says


class NodeFacts(msgspec.Struct, frozen=True):
    """The node, settled: addresses are 16 bytes each, sorted where order means nothing.

    `nodeport_addresses` are the addresses that node ports are served on, both families.
    `cluster_cidrs` empty: the pod range is unknown. `zone` empty: the node has no zone label.
    """

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    primary4: bytes | None = None
    primary6: bytes | None = None
    cluster_cidrs: tuple[Prefix, ...] = ()
    nodeport_addresses: tuple[bytes, ...] = ()
    masquerade_all: bool = False
    service_cidrs: tuple[Prefix, ...] = ()

    def has(self, address: bytes) -> bool:
        """Whether it is one of the node's own. They are sorted, and may be thousands."""
        at = bisect_left(self.addresses, address)
        return at < len(self.addresses) and self.addresses[at] == address

    def primary(self, family: int) -> bytes | None:
        """The node's main address of a family, if it has one."""
        return self.primary4 if family == IPV4 else self.primary6


def node_facts(
    name: str,
    node: Node | None,
    local_addresses: Iterable[bytes] = (),
    settings: NodeSettings | None = None,
) -> NodeFacts:
    """Facts about the node called `name`.

    `node` is its object, None while there is none; `local_addresses` are the addresses of its
    interfaces (16 bytes, loopback may be among them). Raises ConfigError for an entry of
    nodePortAddresses that is no network.
    """
    settings = settings or NodeSettings()
    declared = (*node.internal_ips, *node.external_ips) if node else ()
    preferred = (*settings.primary_addresses, *declared)
    primary = {f: next((a for a in preferred if family_of(a) == f), None) for f in FAMILIES}
    own = {*local_addresses, *(node.internal_ips if node else ()), *settings.primary_addresses}
    addresses = tuple(sorted(a for a in own if not is_loopback(a)))
    pods = settings.cluster_cidrs
    if settings.pods_from_node_cidrs and node and node.pod_cidrs:
        pods = node.pod_cidrs
    served = {
        address
        for family in FAMILIES
        for address in _nodeport_addresses(family, addresses, primary[family], settings)
    }
    return NodeFacts(
        name=name,
        zone=node.zone if node else "",
        addresses=addresses,
        primary4=primary[IPV4],
        primary6=primary[FAMILIES[1]],
        cluster_cidrs=pods,
        nodeport_addresses=tuple(sorted(served)),
        masquerade_all=settings.masquerade_all,
        service_cidrs=settings.service_cidrs,
    )


def _nodeport_addresses(
    family: int, addresses: Iterable[bytes], primary: bytes | None, settings: NodeSettings
) -> list[bytes]:
    """Addresses of one family that serve node ports.

    A list is taken per family: with no entry of a family, all its addresses serve. Loopback never
    does, nor do link-local IPv6 addresses, which may exist on several interfaces at once.
    """
    listed = settings.nodeport_addresses
    if not listed or listed == (PRIMARY,):
        return [primary] if primary else []
    ranges = of_family(parse_nodeport_addresses(listed), family)
    return [
        address
        for address in addresses
        if family_of(address) == family
        and not is_link_local(address)
        and (not ranges or any(address in r for r in ranges))
    ]


def parse_nodeport_addresses(texts: Iterable[str]) -> tuple[Prefix, ...]:
    """The networks of a nodePortAddresses list. Raises ConfigError naming the entry."""
    found = []
    for text in texts:
        try:
            found.append(parse_prefix(text))
        except ValueError as error:
            raise ConfigError(
                f"nodePortAddresses: {error}",
                hint=f'Give networks like 192.168.0.0/16, or the single word "{PRIMARY}".',
            ) from error
    return tuple(found)


def is_leaving(node: Node | None) -> bool:
    """Whether load balancers should stop choosing this node: it is being deleted, or an autoscaler
    has marked it for removal (as kube-proxy's /healthz judges, KEP-3836)."""
    return node is not None and (
        node.deleting or any(taint.key in EXCLUDE_TAINTS for taint in node.taints)
    )
