"""Why each endpoint of a port is in a set or not: the words for what `stages` has decided. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from lbctl.model.records import SliceEndpoint
from lbctl.resolve.endpoints import Candidate, Place, stages
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import Frontend, FrontendKind, ResolvedPort


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


SENTENCES = {
    Reason.READY: "ready",
    Reason.LAST_RESORT: "terminating, but it serves, and no endpoint is ready",
    Reason.NOT_READY: "not ready",
    Reason.TERMINATING: "terminating, and others are ready",
    Reason.ENDED: "terminating, and it serves no longer",
    Reason.HINTS: "topology hints mean it for others",
    Reason.ELSEWHERE: "on another node, and the policy is Local",
    Reason.NO_NODE: "on no node that is known, and the policy is Local",
}


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Of one endpoint and one set."""

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
                Verdict(place in cluster, used if place in cluster else not_used),
                Verdict(place in local, used if place in local else not_local),
            )
        )
    return judged


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


def _idle(endpoint: SliceEndpoint) -> Reason:
    if not endpoint.terminating:
        return Reason.NOT_READY
    return Reason.TERMINATING if endpoint.serving else Reason.ENDED
