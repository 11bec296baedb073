"""Health-check node ports of services: at the node's own addresses they are nobody else's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lbctl.model.records import ObjectKey, Service, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import health_check_port


class Reserved:
    """Which they are, kept up with changes; few services ask for an address of the node."""

    def __init__(self) -> None:
        self.ports: dict[int, ObjectKey] = {}
        self._wanted: dict[ObjectKey, int] = {}
        self._claims: dict[ObjectKey, frozenset[int]] = {}

    def take(
        self,
        keys: Iterable[ObjectKey],
        objects: Mapping[ObjectKey, ServiceObjects],
        node: NodeFacts,
    ) -> set[ObjectKey]:
        """These services may be others now. Returns those that ask for a port that has become, or
        is no longer, a health check's."""
        changed = set()
        for key in keys:
            known = objects.get(key)
            service = known.service if known else None
            port = health_check_port(service) if service else 0
            before = self._wanted.pop(key, 0)
            if port:
                self._wanted[key] = port
            if port != before:
                changed |= {port, before}
            claimed = _claimed(service, node) if service else frozenset()
            self._claims.pop(key, None)
            if claimed:
                self._claims[key] = claimed
        if not changed:
            return set()
        self.ports = {port: key for key, port in sorted(self._wanted.items(), reverse=True)}
        return {key for key, ports in self._claims.items() if not ports.isdisjoint(changed)}


def _claimed(service: Service, node: NodeFacts) -> frozenset[int]:
    """Ports that it asks for at addresses of the node."""
    if any(map(node.has, (*service.external_ips, *service.ingress_ips))):
        return frozenset(port.port for port in service.ports)
    return frozenset()
