"""Health-check node ports: which this node answers on, where, and with which count. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from lbctl.addresses import FAMILIES, IPV4, family_of, of_family
from lbctl.config.bind import ANY4, ANY6
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeFacts, NodeSettings, parse_nodeport_addresses
from lbctl.resolve.service import health_check

PortCount = tuple[int, int]  # port, number of distinct local ready addresses


def health_ports(
    services: Mapping[ObjectKey, ServiceObjects], node: NodeFacts
) -> dict[ObjectKey, PortCount]:
    """Port and count of every load balancer with external policy Local (rule 25)."""
    found = {}
    for key, objects in services.items():
        if objects.service is not None:
            answer = health_check(objects.service, objects.slices, node)
            if answer is not None:
                found[key] = answer
    return found


class HealthPorts:
    """The same, kept up with changes: only services that changed are looked at."""

    def __init__(self) -> None:
        self.ports: dict[ObjectKey, PortCount] = {}

    def take(self, changed: Mapping[ObjectKey, ServiceObjects], node: NodeFacts) -> bool:
        """Returns whether a port or a count differs now."""
        found = health_ports(changed, node)
        before = {key: self.ports[key] for key in changed if key in self.ports}
        for key in before.keys() - found.keys():
            del self.ports[key]
        self.ports.update(found)
        return before != found

    def owners(self) -> tuple[dict[int, ObjectKey], list[str]]:
        """The service that each port belongs to, and sentences about ports that two claim. An API
        server hands each out once; among objects of files, the first by name has it."""
        owners: dict[int, ObjectKey] = {}
        problems = []
        for key in sorted(self.ports):
            port, _ = self.ports[key]
            if owners.setdefault(port, key) != key:
                problems.append(
                    f"{key}: healthCheckNodePort {port} is that of {owners[port]} already; give "
                    "one of them another"
                )
        return owners, problems


def listening_addresses(settings: NodeSettings, node: NodeFacts) -> tuple[bytes, ...]:
    """Addresses to listen on, 16 bytes each, the unspecified one for all of a family.

    As in kube-proxy: everywhere if nodePortAddresses is unset, else where node ports are served.
    """
    listed = settings.nodeport_addresses
    if not listed:
        return ANY4, ANY6
    networks = parse_nodeport_addresses(listed).networks
    if not networks:
        return node.nodeport_addresses
    found: list[bytes] = []
    for family in FAMILIES:
        ranges = of_family(networks, family)
        if not ranges or any(r.is_everything for r in ranges):
            found.append(ANY4 if family == IPV4 else ANY6)
        else:
            found += (a for a in node.nodeport_addresses if family_of(a) == family)
    return tuple(found)
