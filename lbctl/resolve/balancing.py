"""How a service's endpoints are chosen here: by what it says, the cluster's default, the node."""

from __future__ import annotations

import msgspec

from lbctl.model.balancing import NEAR, SLOW_START
from lbctl.model.records import ALGORITHMS, FORWARDINGS, PLAIN, Balancing
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import AT_RANDOM, Choice


def settled(said: Balancing, node: NodeFacts) -> tuple[Choice, str, tuple[str, ...]]:
    """How to choose, what makes an endpoint near (node, zone or nothing), and what of it cannot be.

    A choice by hash is the client's alone: how new, near or busy an endpoint is on this node would
    make it another one elsewhere, or later.
    """
    if said is PLAIN and (node.algorithm, node.forwarding) == (ALGORITHMS[0], FORWARDINGS[0]):
        return AT_RANDOM, "", ()
    choice = Choice(
        said.algorithm or node.algorithm,
        said.slow_start,
        said.spill_over,
        said.flows_leave,
        dsr=(said.forwarding or node.forwarding) == "dsr",
    )
    near = "" if said.near == "zone" and not node.zone else said.near
    if not choice.by_hash:
        return choice, near, ()
    unfit = tuple(
        f"{name} means nothing with algorithm {choice.algorithm}, which goes by the client alone"
        for name, value in ((SLOW_START, said.slow_start), (NEAR, said.near))
        if value
    )
    return msgspec.structs.replace(choice, slow_start=0.0, spill_over=0.0), "", unfit
