"""Which endpoints of a service port may be used, anywhere and on this node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import msgspec

from lbctl.model.records import EndpointSlice, Service, SliceEndpoint
from lbctl.resolve.hints import NO_HINTS, UNUSED, are_hinted, narrow
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import Endpoint, Target

Place = tuple[bytes, int]  # address and port of a backend
Candidate = tuple[Place, SliceEndpoint]


class Selection(msgspec.Struct, frozen=True, gc=False):
    """The two sets, sorted, and why hints did or did not narrow the first."""

    cluster: tuple[Endpoint, ...]
    local: tuple[Endpoint, ...]
    hints: str


class SlicesByTarget:
    """The slices of a service by what they are for, so that a service of thousands of ports in many
    slices is gone through once and not once per port."""

    __slots__ = ("_found",)

    def __init__(self, slices: Iterable[EndpointSlice]) -> None:
        self._found: dict[Target, list[tuple[int, EndpointSlice]]] = {}
        for part in slices:
            for port in part.ports:
                target = (part.family, port.name, port.protocol)
                self._found.setdefault(target, []).append((port.port, part))

    def candidates(self, target: Target, node_name: str) -> dict[Place, SliceEndpoint]:
        """Every endpoint of a port by where it listens, usable or not.

        Slices match by port name and protocol. An endpoint in several slices counts once; where
        they disagree, running beats terminating (the address may have gone to a new pod), then
        ready beats unready, then local beats remote.
        """
        found: dict[Place, SliceEndpoint] = {}
        for port, part in self._found.get(target, ()):
            if not found:
                found = {(endpoint.address, port): endpoint for endpoint in part.endpoints}
                if len(found) == len(part.endpoints):
                    continue  # nobody is there twice
                found = {}
            for endpoint in part.endpoints:
                place = (endpoint.address, port)
                known = found.get(place)
                if known is None or _rank(endpoint, node_name) > _rank(known, node_name):
                    found[place] = endpoint
        return found


def targets_of(slices: Iterable[EndpointSlice]) -> set[Target]:
    """Which ports these slices are for."""
    return {(part.family, port.name, port.protocol) for part in slices for port in part.ports}


def _rank(endpoint: SliceEndpoint, node_name: str) -> tuple[bool, bool, bool, bool]:
    return (
        not endpoint.terminating,
        endpoint.ready,
        endpoint.serving,
        endpoint.node == node_name,
    )


class Stages(NamedTuple):
    """What became of the candidates: the two sets, and what was left out on the way."""

    cluster: Sequence[Candidate]
    local: Sequence[Candidate]
    ready: Sequence[Candidate]
    leaving: Sequence[Candidate]  # not ready, but they serve while they terminate
    hints: str


def stages(found: Mapping[Place, SliceEndpoint], node: NodeFacts) -> Stages:
    """The sets that traffic may use.

    Each set takes its ready endpoints; without any, those that still serve while terminating.
    Hints narrow only the ready endpoints of the cluster set.
    """
    name = node.name
    ready = [item for item in found.items() if item[1].ready]
    leaving: list[Candidate] = []
    if len(ready) < len(found):
        leaving = [
            item
            for item in found.items()
            if not item[1].ready and item[1].serving and item[1].terminating
        ]
    local = [item for item in ready if item[1].node == name]
    if not local and leaving:
        local = [item for item in leaving if item[1].node == name]
    cluster: Sequence[Candidate]
    if ready:
        cluster, why = narrow(ready, node)
    else:
        cluster = leaving
        why = f"{UNUSED}no endpoint is ready" if are_hinted(leaving) else NO_HINTS
    return Stages(cluster, local, ready, leaving, why)


def select(found: Mapping[Place, SliceEndpoint], node: NodeFacts, near: str = "") -> Selection:
    """The same as what is programmed; why each endpoint is in it or not: lbctl/resolve/why.py.

    `near` is what makes an endpoint near: node, zone or nothing.
    """
    cluster, local, _, _, why = stages(found, node)
    here = _endpoints(local, node, near)
    everywhere = (
        here if len(cluster) == len(local) == len(found) else _endpoints(cluster, node, near)
    )
    return Selection(everywhere, here, why)


def _endpoints(items: Sequence[Candidate], node: NodeFacts, near: str) -> tuple[Endpoint, ...]:
    if not items:
        return ()
    name, zone = node.name, node.zone
    return tuple(
        [
            Endpoint(
                address,
                port,
                endpoint.node == name,
                endpoint.weight,
                bool(near) and (endpoint.node == name if near == "node" else endpoint.zone == zone),
            )
            for (address, port), endpoint in sorted(items, key=itemgetter(0))
        ]
    )


def local_ready_addresses(
    service: Service, slices: Sequence[EndpointSlice], families: Iterable[int], node_name: str
) -> frozenset[bytes]:
    """Distinct addresses of ready endpoints on this node, over all ports and given families: what
    the health-check node port counts. Terminating ones carry traffic, but are not counted."""
    by_target = SlicesByTarget(slices)
    return frozenset(
        address
        for family in families
        for name, protocol in {(port.name, port.protocol) for port in service.ports}
        for (address, _), endpoint in by_target.candidates(
            (family, name, protocol), node_name
        ).items()
        if endpoint.ready and endpoint.node == node_name
    )
