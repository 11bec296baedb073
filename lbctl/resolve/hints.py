"""Topology hints: whether this node may narrow a service's endpoints, to which, and why not.

Every kind of trafficDistribution, and topology-aware routing, arrives as hints on endpoints. They
are obeyed as a whole or not at all: one ready endpoint without a hint means that the controller is
not done, and narrowing then could overload the few that have one (KEP-2433, KEP-3015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lbctl.model.records import SliceEndpoint
from lbctl.resolve.node import NodeFacts

Item = TypeVar("Item")
Items = Sequence[tuple[Item, SliceEndpoint]]

NO_HINTS = "no hints"
UNUSED = "not used: "  # before the reason


def narrow(ready: Items[Item], node: NodeFacts) -> tuple[Items[Item], str]:
    """Those of the ready endpoints that this node should use, and a sentence that says why.

    Node hints come first; zone hints are tried if those cannot be used.
    """
    if not are_hinted(ready):
        return ready, NO_HINTS
    by_node, node_problem = _matching(
        ready, lambda e: e.hints.nodes, node.name, f"node {node.name}"
    )
    if by_node:
        return by_node, f"node hints used: {len(by_node)} of {len(ready)} for node {node.name}"
    if not node.zone:
        by_zone: Items[Item] = ()
        zone_problem = "this node has no zone label"
        if not any(endpoint.hints.zones for _, endpoint in ready):
            zone_problem = ""
    else:
        by_zone, zone_problem = _matching(
            ready, lambda e: e.hints.zones, node.zone, f"zone {node.zone}"
        )
    if by_zone:
        return by_zone, f"zone hints used: {len(by_zone)} of {len(ready)} for zone {node.zone}"
    problems = "; ".join(p for p in (node_problem, zone_problem) if p)
    return ready, f"{UNUSED}{problems}"


def are_hinted(items: Items[Item]) -> bool:
    """Whether there is a hint on any of them."""
    for _, endpoint in items:  # noqa: SIM110 - a generator takes twice as long, and this is of all
        if endpoint.hints.zones or endpoint.hints.nodes:
            return True
    return False


def _matching(
    ready: Items[Item],
    hint: Callable[[SliceEndpoint], tuple[str, ...]],
    wanted: str,
    what: str,
) -> tuple[Items[Item], str]:
    """Endpoints hinted at `wanted`, none if such hints are incomplete; and what is wrong."""
    hinted = sum(1 for _, endpoint in ready if hint(endpoint))
    kind = what.partition(" ")[0]
    if not hinted:
        return (), ""
    if hinted < len(ready):
        missing = len(ready) - hinted
        return (), f"{missing} of {len(ready)} ready endpoints without a {kind} hint"
    matching = [item for item in ready if wanted in hint(item[1])]
    return matching, "" if matching else f"no ready endpoint is meant for {what}"
