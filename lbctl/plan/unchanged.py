"""Which ports are programmed as they are to be, so that nothing of them is planned."""

from __future__ import annotations

from lbctl.datapath import consts
from lbctl.plan.changes import PortState
from lbctl.plan.sets import HeldSets, WantedSets
from lbctl.resolve.ports import AT_RANDOM, ResolvedPort


def is_programmed(
    state: PortState,
    port: ResolvedPort,
    frontends: tuple[tuple[bytes, int], ...],
    wanted: WantedSets,
    sets: HeldSets,
) -> bool:
    """Whether nothing but its settings may be others than they are to be. That is so of nearly
    every port that a start finds, and soon told where endpoints are chosen in the plain way."""
    return (
        port.choice is AT_RANDOM
        and not (wanted.shaped or state.shaped or state.cluster_table or state.local_table)
        and frontends == state.frontends
        and port.source_ranges == state.ranges
        and state.settings.algorithm == consts.ALGORITHM_RANDOM
        and sets.are(wanted)
    )
