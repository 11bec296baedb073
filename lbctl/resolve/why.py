"""Why each endpoint of a port is in a set or not: the words for what `stages` has decided. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

from lbctl.model.records import SliceEndpoint
from lbctl.resolve.endpoints import Candidate, Place, stages
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import MOST_WEIGHTED, Frontend, FrontendKind, ResolvedPort


class Origin(StrEnum):
    """Whose traffic it is: of a pod of this node, of the node itself, of anybody else."""

    POD = "pod"
    NODE = "node"
    OUTSIDE = "outside"


class Reason(StrEnum):
    """Why an endpoint is in a set (the first two), or is not."""

    READY = "ready"
    LAST_RESORT = "last_resort"
    NOT_READY = "not_ready"
    TERMINATING = "terminating"
    ENDED = "ended"
    HINTS = "hints"
    ELSEWHERE = "elsewhere"
    NO_NODE = "no_node"
    WEIGHT_0 = "weight_0"


SENTENCES = {
    Reason.READY: "ready",
    Reason.LAST_RESORT: "terminating, but it serves, and no endpoint is ready",
    Reason.NOT_READY: "not ready",
    Reason.TERMINATING: "terminating, and others are ready",
    Reason.ENDED: "terminating, and it serves no longer",
    Reason.HINTS: "topology hints mean it for others",
    Reason.ELSEWHERE: "on another node, and the policy is Local",
    Reason.NO_NODE: "on no node that is known, and the policy is Local",
    Reason.WEIGHT_0: "weight 0: what it has stays, nothing new comes",
}


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Of one endpoint and one set. `used` is whether anything new goes there."""

    used: bool
    reason: Reason


class Judged(msgspec.Struct, frozen=True, gc=False):
    """An endpoint, as to both sets."""

    address: bytes
    port: int
    endpoint: SliceEndpoint
    cluster: Verdict
    local: Verdict


def judge(found: Mapping[Place, SliceEndpoint], node: NodeFacts) -> list[Judged]:
    """Every candidate of a port, sorted by where it listens."""
    result = stages(found, node)
    ready, cluster, local = map(_places, (result.ready, result.cluster, result.local))
    closed_cluster, closed_local = map(_closed, (result.cluster, result.local))
    judged = []
    for place, endpoint in sorted(found.items(), key=lambda item: item[0]):
        if place in ready:
            used, not_used = Reason.READY, Reason.HINTS
        else:
            used, not_used = Reason.LAST_RESORT, _idle(endpoint)
        not_local = not_used
        if endpoint.node != node.name:
            not_local = Reason.ELSEWHERE if endpoint.node else Reason.NO_NODE
        judged.append(
            Judged(
                *place,
                endpoint,
                _verdict(place, cluster, closed_cluster, used, not_used),
                _verdict(place, local, closed_local, used, not_local),
            )
        )
    return judged


def heeds_weight_0(weights: Collection[int]) -> bool:
    """Whether those of weight 0 get nothing new: in a set that is too large all are alike, unless
    nobody is to get anything."""
    return len(weights) <= MOST_WEIGHTED or not any(weights)


def uses_local_set(port: ResolvedPort, frontend: Frontend, origin: Origin) -> bool:
    """Which of the two sets traffic to an address is for: `uses_local_set` of bpf_src/select.h,
    whose answers a test compares with these."""
    if frontend.kind & FrontendKind.CLUSTER_IP:
        return port.internal_local
    return origin is Origin.OUTSIDE and port.external_local


def is_for(frontend: Frontend, origin: Origin) -> bool:
    """Whether traffic of that origin can be to this address at all: loopback is the node's own."""
    return origin is Origin.NODE or not frontend.kind & FrontendKind.SOCKETS


def _places(items: Iterable[Candidate]) -> set[Place]:
    return {place for place, _ in items}


def _closed(items: Collection[Candidate]) -> set[Place]:
    """Those that are in a set, and get nothing new."""
    weights = [endpoint.weight for _, endpoint in items]
    if all(weights) or not heeds_weight_0(weights):
        return set()
    return {place for place, endpoint in items if not endpoint.weight}


def _verdict(
    place: Place, members: set[Place], closed: set[Place], used: Reason, not_used: Reason
) -> Verdict:
    if place in closed:
        return Verdict(False, Reason.WEIGHT_0)
    return Verdict(True, used) if place in members else Verdict(False, not_used)


def _idle(endpoint: SliceEndpoint) -> Reason:
    if not endpoint.terminating:
        return Reason.NOT_READY
    return Reason.TERMINATING if endpoint.serving else Reason.ENDED
