"""Facts about the node: what its object, its interfaces and the settings say, taken together."""

import msgspec

from ebpf.kernel.netlink import SCOPE_GLOBAL, IPAddress, Network
from lbctl.addresses import FAMILIES, family_of, is_link_local, is_loopback
from lbctl.model.records import Node
from lbctl.resolve.node import NodeFacts, NodeSettings, node_facts

DeviceAddresses = dict[int, dict[int, bytes]]  # by interface index and family


class Facts:
    """Set what became known, then `settle`."""

    def __init__(self, name: str, settings: NodeSettings, network: Network) -> None:
        self.name = name
        self.settings = settings
        self.network = network
        self.node: Node | None = None
        self.api_places: frozenset[tuple[bytes, int]] = frozenset()  # of the API server
        self.own_ports: tuple[int, ...] = ()  # that the agent listens on
        self.current = self._settled()
        self._devices: tuple[Network, NodeFacts, DeviceAddresses] | None = None

    @property
    def devices(self) -> DeviceAddresses:
        """`device_addresses` of what is known. It is asked for all the time, and may be thousands:
        worked out when the network was looked at since, which rtnetlink gives a reason for."""
        known = self._devices
        if known is None or known[0] is not self.network or known[1] is not self.current:
            known = self.network, self.current, device_addresses(self.network, self.current)
            self._devices = known
        return known[2]

    def settle(self) -> bool:
        """Make `current` follow; returns whether it changed."""
        settled = self._settled()
        changed = settled != self.current
        if changed:
            self.current = settled
        return changed

    def _settled(self) -> NodeFacts:
        """The Node object goes before the interfaces; these alone where it names no address."""
        settings, node = self.settings, self.node
        declared = node.internal_ips + node.external_ips if node else ()
        named = {family_of(address) for address in (*settings.primary_addresses, *declared)}
        found = [primary_address(self.network, f) for f in FAMILIES if f not in named]
        primary = (*settings.primary_addresses, *(a for a in found if a is not None))
        settings = msgspec.structs.replace(settings, primary_addresses=primary)
        facts = node_facts(self.name, node, local_addresses(self.network), settings)
        return msgspec.structs.replace(facts, api_places=self.api_places, own_ports=self.own_ports)


def local_addresses(network: Network) -> list[bytes]:
    """Addresses of the node's interfaces, but for link-local ones of IPv6, 16 bytes each."""
    found = (_wide(a.address) for a in network.addresses)
    return sorted({a for a in found if not is_link_local(a)})


def primary_address(network: Network, family: int) -> bytes | None:
    """The address other machines see by default: the first of an interface with a default route of
    that family."""
    with_route = {r.ifindex for r in network.default_routes if r.family == family}
    for address in network.addresses:
        wide = _wide(address.address)
        if address.ifindex in with_route and address.scope == 0 and family_of(wide) == family:
            return wide
    return None


def device_addresses(network: Network, facts: NodeFacts) -> DeviceAddresses:
    """By interface index, what the node is called on each device, IPv4 and IPv6, where that is not
    its primary address: the first that others may know, as the kernel would take it."""
    found: DeviceAddresses = {}
    for address in network.addresses:
        wide = _wide(address.address)
        if address.scope == SCOPE_GLOBAL and not is_loopback(wide) and not is_link_local(wide):
            found.setdefault(address.ifindex, {}).setdefault(family_of(wide), wide)
    primary = (facts.primary4, facts.primary6)
    return {
        index: kept
        for index, names in found.items()
        if (kept := {family: a for family, a in names.items() if a not in primary})
    }


def _wide(address: IPAddress) -> bytes:
    raw = address.packed
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw
