"""From a Service, its slices and facts about the node to what each port means here. Pure.

The rules, with a vector for each, are listed in docs/semantics.md; comments give their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType

from lbctl.addresses import (
    FAMILIES,
    Prefix,
    family_of,
    host_prefix,
    loopback,
    of_family,
)
from lbctl.model.names import port_text
from lbctl.model.records import EndpointSlice, ObjectKey, Protocol, Service, ServicePort
from lbctl.resolve.allowed import Allowed
from lbctl.resolve.balancing import settled
from lbctl.resolve.endpoints import SlicesByTarget, local_ready_addresses, select
from lbctl.resolve.node import NodeFacts, node_facts
from lbctl.resolve.ports import (
    MOST_WEIGHTED,
    Endpoint,
    Frontend,
    FrontendKind,
    ResolvedPort,
    Target,
)

__all__ = [
    "Endpoint",
    "Frontend",
    "FrontendKind",
    "NodeFacts",
    "ResolvedPort",
    "families_of",
    "foreign_addresses",
    "health_check",
    "health_check_port",
    "node_facts",
    "own_addresses_in_range",
    "resolve",
]

NOTHING_RESERVED: Mapping[int, ObjectKey] = MappingProxyType({})
_GUARDED = FrontendKind.LOAD_BALANCER | FrontendKind.SOURCE_RANGES
_ON_LOOPBACK = FrontendKind.NODE_PORT | FrontendKind.SOCKETS
_PROTOCOLS = {protocol: protocol.name for protocol in Protocol}


def resolve(
    service: Service,
    slices: Sequence[EndpointSlice],
    node: NodeFacts,
    only: Collection[Target] | None = None,
    reserved: Mapping[int, ObjectKey] = NOTHING_RESERVED,
) -> tuple[ResolvedPort, ...]:
    """One record per port and family, in the order of the object; none if it is not ours.

    `slices` are those of this service, in any order. `only` these ports, None for all: what a
    change of a slice costs goes by the ports it is for. `reserved`: see `Allowed`.
    """
    ports = _distinct(service.ports)
    repeated = _repeated(service.ports) if len(ports) < len(service.ports) else frozenset()
    by_target = SlicesByTarget(slices)
    allowed = Allowed(service, node, reserved)
    choice, near, unfit = settled(service.balancing, node)
    found = []
    for family in families_of(service):
        ranges = _source_ranges(service, family, node)
        for port in ports:
            target = (family, port.name, port.protocol)
            if only is not None and target not in only:
                continue
            frontends, refused = _frontends(service, port, family, node, allowed, bool(ranges))
            selection = select(by_target.candidates(target, node.name), node, near)
            resolved = ResolvedPort(
                name=port_text(service.key, port.name, _PROTOCOLS[port.protocol], family),
                protocol=port.protocol,
                frontends=frontends,
                cluster=selection.cluster,
                local=selection.local,
                local_drop=bool(selection.cluster) and not selection.local,  # rules 7, 8
                internal_local=service.internal_local,
                external_local=service.external_local,
                affinity_seconds=service.affinity_seconds,
                source_ranges=ranges,
                warnings=(
                    *_warnings(service, port, repeated),
                    *refused,
                    *unfit,
                    *_too_many(selection.cluster),
                ),
                hints=selection.hints,
                service=service.key,
                seniority=service.seniority,
                choice=choice,
            )
            found.append(resolved)
    return tuple(found)


def families_of(service: Service) -> tuple[int, ...]:
    """Families this proxy serves a service in: those it has a ClusterIP of (rule 18)."""
    if service.left_alone:
        return ()
    present = {family_of(a) for a in service.cluster_ips}
    return tuple([f for f in FAMILIES if f in present])


def health_check(
    service: Service, slices: Sequence[EndpointSlice], node: NodeFacts
) -> tuple[int, int] | None:
    """Health-check node port and the number of distinct local ready addresses it reports, for a
    load balancer with external policy Local (rule 25); None for every other service.

    A pod with an address of each family counts once: the family with more of them is taken."""
    port = health_check_port(service)
    if not port:
        return None
    families = families_of(service)
    ready = (local_ready_addresses(service, slices, (f,), node.name) for f in families)
    return port, max(map(len, ready))


def health_check_port(service: Service) -> int:
    """The node port at which a load balancer asks for the service; 0 if none does."""
    wanted = service.type == "LoadBalancer" and service.external_local
    return service.health_check_node_port if wanted and families_of(service) else 0


def _distinct(ports: Sequence[ServicePort]) -> list[ServicePort]:
    """Ports by name and protocol, first wins: no API server lets two share both, a file might."""
    found: dict[tuple[str, int], ServicePort] = {}
    for port in ports:
        found.setdefault((port.name, port.protocol), port)
    return list(found.values())


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


def _repeated(ports: Sequence[ServicePort]) -> frozenset[tuple[str, int]]:
    counts = Counter((port.name, port.protocol) for port in ports)
    return frozenset(identity for identity, count in counts.items() if count > 1)


def _warnings(
    service: Service, port: ServicePort, repeated: Collection[tuple[str, int]]
) -> Iterator[str]:
    if service.type == "NodePort" and not port.node_port:
        yield f"port {port.name or port.port} has no nodePort, and only an API server gives one"
    if (port.name, port.protocol) in repeated:
        yield f"several ports are called {port.name!r} for {port.protocol.name}: the first counts"


def _too_many(endpoints: Sequence[Endpoint]) -> Iterator[str]:
    """Whether weights are not heeded."""
    if len(endpoints) > MOST_WEIGHTED and len({e.weight for e in endpoints}) > 1:
        yield f"weights of more than {MOST_WEIGHTED:,} endpoints are not used: all are alike"


def _frontends(
    service: Service,
    port: ServicePort,
    family: int,
    node: NodeFacts,
    allowed: Allowed,
    guarded: bool,
) -> tuple[tuple[Frontend, ...], list[str]]:
    """Every address and port clients may call, one entry each; and why others are left out.

    An address that is an external IP and a load balancer's at once carries both kinds. A ClusterIP
    stays one, since no other kind of address refuses and short-circuits as it does. An address that
    the node itself has is shared with its stack, as those of node ports always are.
    """
    balancer = _GUARDED if guarded else FrontendKind.LOAD_BALANCER
    places: dict[tuple[bytes, int], int] = {}
    refused: list[str] = []
    own = node.nodeport_addresses if port.node_port else ()
    here = (loopback(family),) if port.node_port and node.localhost_node_ports else ()
    for addresses, number, kind in (
        (service.external_ips, port.port, FrontendKind.EXTERNAL_IP),
        (service.ingress_ips, port.port, balancer),
        (own, port.node_port, FrontendKind.NODE_PORT),
        (here, port.node_port, _ON_LOOPBACK),
        (service.cluster_ips, port.port, FrontendKind.CLUSTER_IP),
    ):
        for address in addresses:
            if family_of(address) != family:
                continue
            why = allowed.why_not(address, number, kind)
            if why:
                refused.append(why)
            elif kind == FrontendKind.CLUSTER_IP or (address, number) not in places:
                places[address, number] = kind
            else:
                places[address, number] |= kind
    frontends = []
    for (address, number), kind in sorted(places.items()):
        if kind & FrontendKind.NODE_PORT or node.has(address):
            kind |= FrontendKind.SHARED
        frontends.append(Frontend(address, number, port.protocol, kind))
    return tuple(frontends), refused


def _source_ranges(service: Service, family: int, node: NodeFacts) -> tuple[Prefix, ...]:
    """Who may call the load balancer's addresses; empty: everyone (rules 15, 16).

    If the node itself may, so may the load balancer's address as a source: it is often assigned to
    the node, which then calls itself from it.
    """
    ranges = of_family(service.source_ranges, family) if service.source_ranges else ()
    if not ranges or any(r.is_everything for r in ranges):
        return ()
    primary = node.primary(family)
    own: tuple[Prefix, ...] = ()
    if primary is not None and any(primary in r for r in ranges):
        own = tuple(host_prefix(a) for a in service.ingress_ips if family_of(a) == family)
    return tuple(sorted({*ranges, *own}))
