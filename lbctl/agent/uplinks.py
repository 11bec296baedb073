"""Which interfaces lead to other machines, and which to pods."""

import fnmatch
from collections.abc import Collection, Iterable

from ebpf.kernel.netlink import SCOPE_GLOBAL, Address, IPAddress, Link, Route

# Kinds that hold addresses without leading anywhere outside: pods behind a bridge are met at their
# own veths, and what a dummy holds (a node-local DNS cache, IPVS) is the node's own.
_INWARD_KINDS = frozenset({"veth", "bridge", "dummy", "ifb", "nlmon", "netkit"})


def uplinks(
    found: Iterable[Link],
    routes: Iterable[Route],
    addresses: Iterable[Address] = (),
    node_addresses: Collection[IPAddress] = (),
    named: Collection[str] = (),
) -> frozenset[int]:
    """Indices of the interfaces that lead to other machines, whatever their kind.

    Those `named` (patterns), and only those, if any are. Else: interfaces with a default route,
    with one of the `node_addresses`, or with a global address unless they are a veth, a bridge or
    another kind that leads nowhere outside. Overlay devices (vxlan, wireguard) count.
    """
    candidates = {link.ifindex: link for link in found if not link.loopback}
    if named:
        return frozenset(
            link.ifindex for link in candidates.values() if _matches(link.ifname, named)
        )
    chosen = {route.ifindex for route in routes}
    for address in addresses:
        link = candidates.get(address.ifindex)
        if link is None:
            continue
        outward = link.kind not in _INWARD_KINDS and address.scope == SCOPE_GLOBAL
        if outward or address.address in node_addresses:
            chosen.add(link.ifindex)
    return frozenset(chosen & candidates.keys())


def pod_interfaces(
    found: Iterable[Link], uplink_indices: Collection[int], patterns: Collection[str] = ()
) -> list[Link]:
    """The host sides of pods' links: veths whose peer is in another namespace, or with `patterns`
    the interfaces of those names, of any kind. Never an uplink, never loopback."""
    return [
        link
        for link in found
        if link.ifindex not in uplink_indices
        and not link.loopback
        and (
            _matches(link.ifname, patterns)
            if patterns
            else link.kind == "veth" and link.peer_netns is not None
        )
    ]


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
