"""What resolving needs to know of the node the agent runs on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

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
from lbctl.model.records import ALGORITHMS, FORWARDINGS, Algorithm, Forwarding, Node

# Words that nodePortAddresses may hold beside networks. The first is KubeProxyConfiguration's own.
PRIMARY = "primary"  # the node's primary addresses
LOCALHOST = "localhost"  # 127.0.0.1 and ::1, for the node's own processes
ALL = "all"  # every address but loopback: 0.0.0.0/0 and ::/0
_WORDS = (PRIMARY, LOCALHOST, ALL)
_EVERYWHERE = (parse_prefix("0.0.0.0/0"), parse_prefix("::/0"))

EXCLUDE_TAINTS = frozenset({"ToBeDeletedByClusterAutoscaler"})


class NodeSettings(msgspec.Struct, frozen=True):
    """What an operator may say about a node, in the words of KubeProxyConfiguration.

    `nodeport_addresses`: None, or networks in CIDR notation and the words "primary", "localhost"
    and "all". None means what "primary" means (the default of kube-proxy's nftables mode).
    """

    cluster_cidrs: tuple[Prefix, ...] = ()
    service_cidrs: tuple[Prefix, ...] = ()
    nodeport_addresses: tuple[str, ...] | None = None
    masquerade_all: bool = False
    pods_from_node_cidrs: bool = False  # detectLocalMode: NodeCIDR
    primary_addresses: tuple[bytes, ...] = ()  # instead of what the Node object says
    external_ip_cidrs: tuple[Prefix, ...] = ()  # empty: external IPs may be anywhere
    algorithm: Algorithm = ALGORITHMS[0]  # of services that do not say how to choose
    forwarding: Forwarding = FORWARDINGS[0]  # ... nor the way there


class NodeFacts(msgspec.Struct, frozen=True):
    """The node, settled: addresses are 16 bytes each, sorted where order means nothing.

    `nodeport_addresses` are the addresses that node ports are served on, both families;
    `localhost_node_ports` says that loopback does too, for the node's own processes.
    `cluster_cidrs` empty: the pod range is unknown. `zone` empty: the node has no zone label.
    """

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    primary4: bytes | None = None
    primary6: bytes | None = None
    cluster_cidrs: tuple[Prefix, ...] = ()
    nodeport_addresses: tuple[bytes, ...] = ()
    localhost_node_ports: bool = False
    masquerade_all: bool = False
    service_cidrs: tuple[Prefix, ...] = ()
    algorithm: Algorithm = ALGORITHMS[0]
    forwarding: Forwarding = FORWARDINGS[0]
    # What no object may take (lbctl/resolve/allowed.py).
    external_ip_cidrs: tuple[Prefix, ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()  # of pods alone, by the settings and the Node object
    api_places: frozenset[tuple[bytes, int]] = frozenset()  # where the API server listens
    own_ports: tuple[int, ...] = ()  # that the agent listens on

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
    places = parse_nodeport_addresses(settings.nodeport_addresses or (PRIMARY,))
    known_pods = (*settings.cluster_cidrs, *(node.pod_cidrs if node else ()))
    served = {
        address
        for family in FAMILIES
        for address in _nodeport_addresses(family, addresses, primary[family], places)
    }
    return NodeFacts(
        name=name,
        zone=node.zone if node else "",
        addresses=addresses,
        primary4=primary[IPV4],
        primary6=primary[FAMILIES[1]],
        cluster_cidrs=pods,
        nodeport_addresses=tuple(sorted(served)),
        localhost_node_ports=LOCALHOST in places.words,
        masquerade_all=settings.masquerade_all,
        service_cidrs=settings.service_cidrs,
        algorithm=settings.algorithm,
        forwarding=settings.forwarding,
        external_ip_cidrs=settings.external_ip_cidrs,
        pod_cidrs=_of_pods_alone(known_pods, [a for a in primary.values() if a]),
    )


def _of_pods_alone(ranges: Iterable[Prefix], nodes: Sequence[bytes]) -> tuple[Prefix, ...]:
    """Ranges that hold pods and nothing else. Where the nodes' addresses are of the same range, as
    in flat networks of clouds, so may be load balancers', and the range tells nobody apart."""
    return tuple(dict.fromkeys(r for r in ranges if not any(a in r for a in nodes)))


class NodePortPlaces(msgspec.Struct, frozen=True):
    """A nodePortAddresses list: its words, and its networks with those that "all" stands for."""

    words: frozenset[str]
    networks: tuple[Prefix, ...]


def _nodeport_addresses(
    family: int, addresses: Iterable[bytes], primary: bytes | None, places: NodePortPlaces
) -> set[bytes]:
    """Addresses of one family that serve node ports to everybody.

    Networks are taken per family: with none of a family, all its addresses serve, unless the word
    "primary" is there. Loopback never does, nor do link-local IPv6 addresses, which may exist on
    several interfaces at once.
    """
    found = {primary} if primary and PRIMARY in places.words else set()
    ranges = of_family(places.networks, family)
    if not places.networks or (PRIMARY in places.words and not ranges):
        return found
    return found | {
        address
        for address in addresses
        if family_of(address) == family
        and not is_link_local(address)
        and (not ranges or any(address in r for r in ranges))
    }


def parse_nodeport_addresses(texts: Iterable[str]) -> NodePortPlaces:
    """What a nodePortAddresses list says. Raises ConfigError naming the entry."""
    listed = tuple(texts)
    networks = list(_EVERYWHERE if ALL in listed else ())
    for text in listed:
        if text in _WORDS:
            continue
        try:
            networks.append(parse_prefix(text))
        except ValueError as error:
            raise ConfigError(
                f"nodePortAddresses: {error}",
                hint=f"Give networks like 192.168.0.0/16, or the words {', '.join(_WORDS)}.",
            ) from error
    return NodePortPlaces(frozenset(_WORDS) & frozenset(listed), tuple(networks))


def is_leaving(node: Node | None) -> bool:
    """Whether load balancers should stop choosing this node: it is being deleted, or an autoscaler
    has marked it for removal (as kube-proxy's /healthz judges, KEP-3836)."""
    return node is not None and (
        node.deleting or any(taint.key in EXCLUDE_TAINTS for taint in node.taints)
    )
