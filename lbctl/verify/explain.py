"""Why traffic to a service goes where it goes: which endpoints are used from here, which are not,
and what would change that. All of it is asked of the resolver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from lbctl.addresses import format_endpoint
from lbctl.inspect.services import KINDS
from lbctl.model.names import PortName
from lbctl.model.records import EndpointSlice, Protocol, Service, ServiceObjects
from lbctl.resolve import why
from lbctl.resolve.endpoints import SlicesByTarget
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import Endpoint, Frontend, ResolvedPort, Target
from lbctl.resolve.service import resolve
from lbctl.resolve.whatif import with_ready, without_node
from lbctl.resolve.why import SENTENCES, Judged, Origin, Reason

# Nodes whose loss is tried, those with the most endpoints first.
MOST_NODES: Final = 32
# Of these it would mean nothing to become ready.
_READY_ALREADY = frozenset(
    {Reason.READY, Reason.HINTS, Reason.ELSEWHERE, Reason.NO_NODE, Reason.WEIGHT_0}
)


class Address(msgspec.Struct, frozen=True):
    """What clients call."""

    endpoint: str
    kinds: tuple[str, ...]


class ExplainedEndpoint(msgspec.Struct, frozen=True):
    """An endpoint: whether traffic may go there, why (not), and what would be if it were ready.
    `pod` is namespace/name, empty if that is not known or it is none."""

    endpoint: str
    node: str
    here: bool
    used: bool
    reason: str  # of lbctl/resolve/why.py
    why: str
    if_ready: str = ""
    pod: str = ""


class NodeLoss(msgspec.Struct, frozen=True):
    """What would be left if a node went."""

    node: str
    endpoints: int  # of those used, on that node
    left: int
    verdict: str


class Group(msgspec.Struct, frozen=True):
    """Addresses of a port that lead to the same endpoints from here. `verdict` is that of
    `lbctl trace`: forward, reject or drop."""

    addresses: tuple[Address, ...]
    policy: str  # Cluster or Local
    verdict: str
    endpoints: tuple[ExplainedEndpoint, ...]
    losses: tuple[NodeLoss, ...]
    nodes: int  # with endpoints that are used, this one not counted
    programmed: bool | None = None  # whether the kernel has the same; None: it was not asked


class ExplainedPort(msgspec.Struct, frozen=True):
    """One port of one family."""

    name: PortName
    groups: tuple[Group, ...]
    hints: str
    source_ranges: tuple[str, ...]
    affinity_seconds: int
    warnings: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True):
    """All of a service. `notes` are sentences about the service as a whole."""

    service: str
    node: str
    origin: str
    ports: tuple[ExplainedPort, ...]
    notes: tuple[str, ...] = ()


def explain(
    objects: ServiceObjects,
    node: NodeFacts,
    origin: Origin,
    port_name: str | None = None,
    notes: Iterable[str] = (),
) -> Explanation:
    """What `objects` mean to traffic from there. `port_name` None: all ports."""
    service = objects.service
    assert service is not None
    said = list(notes)
    if service.left_alone:
        said.append(f"it is left alone: {service.left_alone}")
    elif not service.cluster_ips:
        said.append("it has no ClusterIP, so nothing is programmed for it")
    ports = tuple(
        _port(objects, node, origin, port)
        for port in resolve(service, objects.slices, node)
        if port_name is None or PortName.parse(port.name).port == port_name
    )
    return Explanation(str(service.key), node.name, origin.value, ports, tuple(said))


def used_endpoints(port: ResolvedPort, local: bool) -> tuple[Endpoint, ...]:
    """Those of one of the two sets that anything new goes to."""
    members = port.local if local else port.cluster
    if not why.heeds_weight_0([e.weight for e in members]):
        return members
    return tuple(e for e in members if e.weight)


def verdict(port: ResolvedPort, local: bool) -> str:
    """What becomes of the first packet of a connection."""
    if used_endpoints(port, local):
        return "forward"
    # A set of nothing but weight 0 refuses under any policy (docs/semantics.md, Weights).
    return "drop" if local and port.local_drop and not port.local else "reject"


def _port(
    objects: ServiceObjects, node: NodeFacts, origin: Origin, port: ResolvedPort
) -> ExplainedPort:
    name = PortName.parse(port.name)
    assert objects.service is not None
    asked = _Asked(objects.service, objects.slices, node, _target(port, name), port)
    return ExplainedPort(
        name=name,
        groups=tuple(_groups(asked, origin)),
        hints=port.hints,
        source_ranges=tuple(map(str, port.source_ranges)),
        affinity_seconds=port.affinity_seconds,
        warnings=port.warnings,
    )


class _Asked(msgspec.Struct, frozen=True):
    """One port, and all that is needed to ask what else it could be."""

    service: Service
    slices: tuple[EndpointSlice, ...]
    node: NodeFacts
    target: Target
    port: ResolvedPort

    def judged(self, slices: Sequence[EndpointSlice]) -> list[Judged]:
        found = SlicesByTarget(slices).candidates(self.target, self.node.name)
        return why.judge(found, self.node)

    def resolved(self, slices: Sequence[EndpointSlice]) -> ResolvedPort:
        (port,) = resolve(self.service, slices, self.node, {self.target})
        return port


def _target(port: ResolvedPort, name: PortName) -> Target:
    return int(name.family.removeprefix("v")), name.port, Protocol(port.protocol)


def _groups(asked: _Asked, origin: Origin) -> Iterator[Group]:
    by_set: dict[bool, list[Frontend]] = {}
    for frontend in asked.port.frontends:
        if why.is_for(frontend, origin):
            local = why.uses_local_set(asked.port, frontend, origin)
            by_set.setdefault(local, []).append(frontend)
    for local, frontends in by_set.items():
        losses, nodes = _losses(asked, local)
        yield Group(
            addresses=tuple(map(_address, frontends)),
            policy="Local" if local else "Cluster",
            verdict=verdict(asked.port, local),
            endpoints=tuple(_endpoints(asked, local)),
            losses=losses,
            nodes=nodes,
        )


def _address(frontend: Frontend) -> Address:
    return Address(
        format_endpoint(frontend.address, frontend.port),
        tuple(text for kind, text in KINDS.items() if frontend.kind & kind),
    )


def _endpoints(asked: _Asked, local: bool) -> Iterator[ExplainedEndpoint]:
    # What would be is the same for all that differ in nothing but their address.
    known: dict[tuple[object, ...], str] = {}
    for judged in asked.judged(asked.slices):
        found = judged.local if local else judged.cluster
        endpoint = judged.endpoint
        then = ""
        if found.reason not in _READY_ALREADY:
            kind = (found, endpoint.node, endpoint.hints, endpoint.weight)
            if kind not in known:
                known[kind] = _if_ready(asked, judged, local)
            then = known[kind]
        said = SENTENCES[found.reason]
        if found.reason is Reason.HINTS:
            said = f"{said} ({asked.port.hints})"
        yield ExplainedEndpoint(
            endpoint=format_endpoint(judged.address, judged.port),
            node=endpoint.node,
            here=endpoint.node == asked.node.name,
            used=found.used,
            reason=found.reason.value,
            why=said,
            if_ready=then,
        )


def _if_ready(asked: _Asked, judged: Judged, local: bool) -> str:
    slices = with_ready(asked.slices, judged.address)
    before = {(e.address, e.port) for e in used_endpoints(asked.port, local)}
    after = {(e.address, e.port) for e in used_endpoints(asked.resolved(slices), local)}
    own = judged.address, judged.port
    if own not in after:
        (then,) = (j for j in asked.judged(slices) if (j.address, j.port) == own)
        reason = (then.local if local else then.cluster).reason
        return f"it would still not be used: {SENTENCES[reason]}"
    gone = before - after - {own}
    if own in before:
        return f"{_number(gone)} would not be used any more" if gone else ""
    return f"it would be used instead of {_number(gone)}" if gone else "it would be used too"


def _number(places: Iterable[tuple[bytes, int]]) -> str:
    found = sorted(places)
    if len(found) == 1:
        return format_endpoint(*found[0])
    return f"{len(found)} others"


def _losses(asked: _Asked, local: bool) -> tuple[tuple[NodeLoss, ...], int]:
    """What the loss of each other node would leave, and how many such nodes there are."""
    used = {(e.address, e.port) for e in used_endpoints(asked.port, local)}
    counts = Counter(
        judged.endpoint.node
        for judged in asked.judged(asked.slices)
        if (judged.address, judged.port) in used and judged.endpoint.node
    )
    counts.pop(asked.node.name, None)
    found = []
    for name, number in counts.most_common(MOST_NODES):
        port = asked.resolved(without_node(asked.slices, name))
        left = len(used_endpoints(port, local))
        found.append(NodeLoss(name, number, left, verdict(port, local)))
    return tuple(found), len(counts)
