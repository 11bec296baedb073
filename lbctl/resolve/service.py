"""From a Service, its slices and facts about the node to what each port means here. Pure.

The rules, with a vector for each, are listed in docs/semantics.md; comments give their numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lbctl.addresses import (
    FAMILIES,
    Prefix,
    family_of,
    host_prefix,
    loopback,
    of_family,
)
from lbctl.model.names import port_text
from lbctl.model.records import EndpointSlice, Service, ServicePort
from lbctl.resolve.endpoints import candidates, local_ready_addresses, select
from lbctl.resolve.node import NodeFacts, node_facts
from lbctl.resolve.ports import Endpoint, Frontend, FrontendKind, ResolvedPort

__all__ = [
    "Endpoint",
    "Frontend",
    "FrontendKind",
    "NodeFacts",
    "ResolvedPort",
    "families_of",
    "foreign_addresses",
    "health_check",
    "node_facts",
    "own_addresses_in_range",
    "resolve",
]


def resolve(
    service: Service, slices: Sequence[EndpointSlice], node: NodeFacts
) -> tuple[ResolvedPort, ...]:
    """One record per port and family, in the order of the object; none if it is not ours.

    `slices` are those of this service, in any order.
    """
    return tuple(
        _resolve_port(service, port, family, slices, node)
        for family in families_of(service)
        for port in _distinct(service.ports)
    )


def families_of(service: Service) -> tuple[int, ...]:
    """Families this proxy serves a service in: those it has a ClusterIP of (rule 18)."""
    if service.left_alone:
        return ()
    present = {family_of(a) for a in service.cluster_ips}
    return tuple(f for f in FAMILIES if f in present)


def health_check(
    service: Service, slices: Sequence[EndpointSlice], node: NodeFacts
) -> tuple[int, int] | None:
    """Health-check node port and the number of distinct local ready addresses it reports, for a
    load balancer with external policy Local (rule 25); None for every other service.

    A pod with an address of each family counts once: the family with more of them is taken."""
    families = families_of(service)
    wanted = service.type == "LoadBalancer" and service.external_local
    if not (families and wanted and service.health_check_node_port):
        return None
    ready = (local_ready_addresses(service, slices, (f,), node.name) for f in families)
    return service.health_check_node_port, max(map(len, ready))


def _distinct(ports: Sequence[ServicePort]) -> Iterator[ServicePort]:
    """Ports by name and protocol, first wins: no API server lets two share both, a file might."""
    seen = set()
    for port in ports:
        identity = (port.name, port.protocol)
        if identity not in seen:
            seen.add(identity)
            yield port


def _resolve_port(
    service: Service,
    port: ServicePort,
    family: int,
    slices: Sequence[EndpointSlice],
    node: NodeFacts,
) -> ResolvedPort:
    found = candidates(port, slices, family, node.name)
    selection = select(found, node)
    ranges = _source_ranges(service, family, node)
    return ResolvedPort(
        name=port_text(service.key, port.name, port.protocol.name, family),
        protocol=port.protocol,
        frontends=_frontends(service, port, family, node, guarded=bool(ranges)),
        cluster=selection.cluster,
        local=selection.local,
        local_drop=bool(selection.cluster) and not selection.local,  # rules 7, 8
        internal_local=service.internal_local,
        external_local=service.external_local,
        affinity_seconds=service.affinity_seconds,
        source_ranges=ranges,
        warnings=tuple(_warnings(service, port)),
        hints=selection.hints,
    )


def foreign_addresses(service: Service, node: NodeFacts) -> tuple[bytes, ...]:
    """ClusterIPs inside the service ranges that are not ours to serve, nor to drop: those of a
    service that another proxy serves."""
    if not service.left_alone:
        return ()
    return tuple(a for a in service.cluster_ips if _in_service_range(a, node))


def own_addresses_in_range(node: NodeFacts) -> tuple[bytes, ...]:
    """The node's own addresses inside the service ranges, whether a service has them or not: a
    node-local DNS cache answers there."""
    return tuple(a for a in node.addresses if _in_service_range(a, node))


def _in_service_range(address: bytes, node: NodeFacts) -> bool:
    return any(address in prefix for prefix in node.service_cidrs)


def _warnings(service: Service, port: ServicePort) -> Iterator[str]:
    if service.type == "NodePort" and not port.node_port:
        yield f"port {port.name or port.port} has no nodePort, and only an API server gives one"
    if sum((p.name, p.protocol) == (port.name, port.protocol) for p in service.ports) > 1:
        yield f"several ports are called {port.name!r} for {port.protocol.name}: the first counts"


def _frontends(
    service: Service, port: ServicePort, family: int, node: NodeFacts, *, guarded: bool
) -> tuple[Frontend, ...]:
    """Every address and port clients may call, one entry each.

    An address that is an external IP and a load balancer's at once carries both kinds. A ClusterIP
    stays one, since no other kind of address refuses and short-circuits as it does. An address that
    the node itself has is shared with its stack, as those of node ports always are.
    """
    balancer = FrontendKind.LOAD_BALANCER
    if guarded:
        balancer |= FrontendKind.SOURCE_RANGES
    places: dict[tuple[bytes, int], FrontendKind] = {}
    for addresses, number, kind in (
        (service.external_ips, port.port, FrontendKind.EXTERNAL_IP),
        (service.ingress_ips, port.port, balancer),
        (node.nodeport_addresses if port.node_port else (), port.node_port, FrontendKind.NODE_PORT),
        (
            (loopback(family),) if port.node_port and node.localhost_node_ports else (),
            port.node_port,
            FrontendKind.NODE_PORT | FrontendKind.SOCKETS,
        ),
    ):
        for address in addresses:
            if family_of(address) == family:
                place = (address, number)
                places[place] = places.get(place, FrontendKind(0)) | kind
    for address in service.cluster_ips:
        if family_of(address) == family:
            places[address, port.port] = FrontendKind.CLUSTER_IP
    return tuple(
        Frontend(address, number, port.protocol, kind | _shared(address, kind, node))
        for (address, number), kind in sorted(places.items())
    )


def _shared(address: bytes, kind: FrontendKind, node: NodeFacts) -> FrontendKind:
    shared = kind & FrontendKind.NODE_PORT or node.has(address)
    return FrontendKind.SHARED if shared else FrontendKind(0)


def _source_ranges(service: Service, family: int, node: NodeFacts) -> tuple[Prefix, ...]:
    """Who may call the load balancer's addresses; empty: everyone (rules 15, 16).

    If the node itself may, so may the load balancer's address as a source: it is often assigned to
    the node, which then calls itself from it.
    """
    ranges = of_family(service.source_ranges, family)
    if not ranges or any(r.is_everything for r in ranges):
        return ()
    primary = node.primary(family)
    own: tuple[Prefix, ...] = ()
    if primary is not None and any(primary in r for r in ranges):
        own = tuple(host_prefix(a) for a in service.ingress_ips if family_of(a) == family)
    return tuple(sorted({*ranges, *own}))
