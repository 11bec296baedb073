"""Reading back how endpoints are chosen: weights, shares that have yet to grow, tables by hash."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.regions import UNKNOWN
from lbctl.datapath.tables import Tables
from lbctl.datapath.ticks import tick_at
from lbctl.model.records import DEFAULT_WEIGHT
from lbctl.plan.changes import TABLES, PortState
from lbctl.plan.planner import Planner
from lbctl.program.regions import misplaced, regions_of

_KINDS = tuple(TABLES)


def read(tables: Tables, planner: Planner, by_id: Mapping[int, PortState], now: float) -> None:
    """Into the states, whose sets are read already."""
    _read_weights(tables, planner, by_id, now)
    _read_tables(tables, planner, by_id, now)


def _read_weights(
    tables: Tables, planner: Planner, by_id: Mapping[int, PortState], now: float
) -> None:
    """Which services are not as plain as most."""
    backends, tick = tables.backends.records, tick_at(now)
    used = backends["port"] != 0
    slots = tables.slots.records
    owners = [
        backends["service"][used & (backends["weight"] != DEFAULT_WEIGHT)],
        backends["service"][slots["backend"][slots["share"] != 0]],
    ]
    for number in np.unique(np.concatenate(owners)).tolist():
        if number in by_id:
            by_id[number].shaped = True
    serving = used & (backends["flags"] & consts.BACKEND_SERVING != 0) & (backends["since"] != 0)
    for number in np.unique(backends["service"][serving]).tolist():
        state = by_id.get(number)
        if state is None or not state.settings.slow_start:
            continue
        state.shaped = True
        ages = tick - backends["since"][serving & (backends["service"] == number)].astype(np.int64)
        if (ages + 1 < state.settings.slow_start).any():
            planner.warming[state.name] = state


def _read_tables(
    tables: Tables, planner: Planner, by_id: Mapping[int, PortState], now: float
) -> None:
    """Tables that lie where none can are as good as not there: they are made anew. What is in the
    others is compared when their services are planned."""
    states = list(by_id.values())
    records = tables.services.records[[state.id for state in states]]
    words = np.column_stack([records[TABLES[kind]] for kind in _KINDS]).astype(np.uint64)
    words = words.reshape(-1, len(_KINDS))
    regions = regions_of(words)
    bad = set(misplaced(regions, 2 * tables.hash_tables.max_entries).tolist())
    for place, state in enumerate(states):
        if place in bad:
            state.cluster_table = state.local_table = UNKNOWN
        else:
            state.cluster_table, state.local_table = words[place].tolist()
    used: npt.NDArray[np.int64] = regions[~np.isin(regions[:, 0], list(bad)), 1:]
    top = int((used[:, 0] + used[:, 1]).max(initial=0))
    planner.tables.adopt(used, top, now)
