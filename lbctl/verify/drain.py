"""What the loss of a node would do: which services would have no endpoint left, which would lose
those near, and which flows would end. The resolver says it of the objects without the node's
endpoints, and the programs, where they may be asked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

import msgspec

from lbctl.addresses import format_endpoint
from lbctl.model.names import PortName
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.hints import UNUSED
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import Endpoint, Frontend, FrontendKind, ResolvedPort
from lbctl.resolve.service import resolve
from lbctl.resolve.whatif import without_node
from lbctl.resolve.why import Origin, is_for, uses_local_set
from lbctl.verify.explain import used_endpoints, verdict

Place = tuple[str, str]  # name of a port, address:port of an endpoint
Changes = Mapping[ObjectKey, tuple[ServiceObjects, ServiceObjects]]
# By name of a port and origin of the traffic: what becomes of it now, and then.
Verdicts = Mapping[tuple[str, str], tuple[str, str]]
_SETS: Final = (False, True)  # whether it is the local one


class View(msgspec.Struct, frozen=True):
    """Whose eyes it is seen with, and what that is called."""

    label: str
    node: NodeFacts


class DrainedPort(msgspec.Struct, frozen=True):
    """A port with endpoints on the node, be it of weight 0: those have their flows to lose.
    `effects` are sentences about what clients would notice, none if that is nothing."""

    name: PortName
    endpoints: int  # on the node, that connections go to
    left: int  # of all that connections go to
    last: bool  # none is left anywhere
    effects: tuple[str, ...]
    flows: int | None  # of this node's, to endpoints on the node; None: not known
    # By origin of the traffic, what becomes of new connections at this node, before and after.
    verdicts: Mapping[str, tuple[str, str]]


class Drained(msgspec.Struct, frozen=True):
    """All of it. `asked` is who gave the verdicts: programs, or resolver."""

    node: str
    view: str
    asked: str
    ports: tuple[DrainedPort, ...]
    flows: int | None


def affected(
    services: Mapping[ObjectKey, ServiceObjects], node: str
) -> dict[ObjectKey, tuple[ServiceObjects, ServiceObjects]]:
    """Services with endpoints on the node, as they are and as they would be."""
    found = {}
    for key, objects in sorted(services.items()):
        after = without_node(objects.slices, node)
        if objects.service is not None and after != objects.slices:
            found[key] = objects, msgspec.structs.replace(objects, slices=after)
    return found


def simulate(
    changes: Changes,
    node: str,
    views: Sequence[View],
    verdicts: Verdicts,
    flows: Mapping[Place, int] | None,
) -> Iterator[DrainedPort]:
    """A record for each port that has usable endpoints on the node, as the first of `views` sees
    it. `flows` are numbers of flows by where they lead."""
    for before, after in changes.values():
        yield from _ports(before, after, node, views, verdicts, flows)


def resolvers_verdicts(changes: Changes, view: View) -> dict[tuple[str, str], tuple[str, str]]:
    """What the resolver says of new connections, before and after."""
    found = {}
    for before, after in changes.values():
        then = _resolved(after, view)
        for name, now in _resolved(before, view).items():
            for origin in Origin:
                frontend = called(now, origin)
                if frontend is not None:
                    local = uses_local_set(now, frontend, origin)
                    found[name, origin.value] = verdict(now, local), verdict(then[name], local)
    return found


def called(port: ResolvedPort, origin: Origin) -> Frontend | None:
    """The address that such traffic is tried with: from outside one of those for the world, if the
    port has any; else the ClusterIP."""
    found = [f for f in port.frontends if is_for(f, origin)]
    inner = [f for f in found if f.kind & FrontendKind.CLUSTER_IP]
    outer = [f for f in found if f not in inner]
    first, second = (outer, inner) if origin is Origin.OUTSIDE else (inner, outer)
    return next(iter([*first, *second]), None)


def _ports(
    before: ServiceObjects,
    after: ServiceObjects,
    node: str,
    views: Sequence[View],
    verdicts: Verdicts,
    flows: Mapping[Place, int] | None,
) -> Iterator[DrainedPort]:
    on_node = {e.address for part in before.slices for e in part.endpoints if e.node == node}
    seen = [(view, _resolved(before, view), _resolved(after, view)) for view in views]
    there = _resolved(before, View("", NodeFacts(node)))
    for name, now in seen[0][1].items():
        then = seen[0][2][name]
        members = _places((*now.cluster, *now.local, *there[name].local), on_node)
        if not members:
            continue
        gone = {format_endpoint(*place) for place in members}
        used = [used_endpoints(port, local) for port in (now, there[name]) for local in _SETS]
        yield DrainedPort(
            name=PortName.parse(name),
            endpoints=len(_places(chain.from_iterable(used), on_node)),
            left=len(_used(then)),
            last=_is_lost(now, then),
            effects=tuple(_effects(name, node, there[name], seen)),
            flows=None if flows is None else sum(flows.get((name, place), 0) for place in gone),
            verdicts={
                origin.value: verdicts[name, origin.value]
                for origin in Origin
                if (name, origin.value) in verdicts
            },
        )


def _places(endpoints: Iterable[Endpoint], on_node: Collection[bytes]) -> set[tuple[bytes, int]]:
    return {(e.address, e.port) for e in endpoints if e.address in on_node}


def _used(port: ResolvedPort) -> tuple[Endpoint, ...]:
    """Those that connections go to, wherever they are."""
    return used_endpoints(port, local=False)


def _is_lost(now: ResolvedPort, then: ResolvedPort) -> bool:
    return bool(_used(now)) and not _used(then)


def _resolved(objects: ServiceObjects, view: View) -> dict[str, ResolvedPort]:
    assert objects.service is not None
    return {p.name: p for p in resolve(objects.service, objects.slices, view.node)}


def _effects(
    name: str,
    node: str,
    there: ResolvedPort,
    seen: Sequence[tuple[View, dict[str, ResolvedPort], dict[str, ResolvedPort]]],
) -> Iterator[str]:
    _, before, after = seen[0]
    if _is_lost(before[name], after[name]):
        left = "but of weight 0" if after[name].cluster else "anywhere"
        yield f"no endpoint would be left {left}: connections would be refused"
        return
    served = used_endpoints(there, local=True)
    if served and there.external_local:
        yield f"policy Local: what comes to {node} from outside would be dropped there"
    if served and there.internal_local:
        yield f"policy Local: what {node} and its pods send to the ClusterIP would be dropped"
    for view, now, then in seen:
        if _is_narrow(now[name]) and not _is_narrow(then[name]):
            yield f"{view.label} would lose what is near: {_why(then[name])}"


def _is_narrow(port: ResolvedPort) -> bool:
    """Whether topology hints narrow its endpoints."""
    return " hints used: " in port.hints


def _why(port: ResolvedPort) -> str:
    if port.hints.startswith(UNUSED):
        return f"topology hints would not be used, {port.hints.removeprefix(UNUSED)}"
    return f"{len(_used(port))} endpoints, wherever they are"


def zones(known: Collection[tuple[str, str]], node: str) -> list[View]:
    """A view for each zone of the other nodes, by (name, zone) of all nodes."""
    found = sorted({zone for name, zone in known if zone and name != node})
    # No node is called like this: nothing is local.
    return [View(f"zone {z}", NodeFacts(f"any node of {z}", zone=z)) for z in found]
