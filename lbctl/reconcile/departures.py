"""Endpoints that left, and whose flows are not to last as long as they like."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable

import numpy as np
import structlog

from lbctl.datapath import consts
from lbctl.datapath.tables import Tables
from lbctl.datapath.ticks import TICK_SECONDS, tick_at
from lbctl.plan.changes import Plan

# Ends all flows of these backends, by id.
EndFlows = Callable[[Collection[int]], None]


class Departures:
    """Their deadlines, in order. What the maps say of them is believed, so that the next agent
    knows what this one did: a backend that left has its deadline in its record."""

    def __init__(self, tables: Tables, end_flows: EndFlows) -> None:
        self._tables = tables
        self._end_flows = end_flows
        self._deadlines: list[tuple[int, int]] = []  # tick, backend id
        self._log = structlog.get_logger()
        records = tables.backends.records
        left = np.flatnonzero(records["flags"] & consts.BACKEND_ENDING)
        self._add(zip(left.tolist(), records["since"][left].tolist(), strict=True))

    def note(self, plan: Plan) -> None:
        """A plan was carried out."""
        self._add(plan.ending)

    def due(self) -> float | None:
        """When `step` has something to do."""
        return self._deadlines[0][0] * TICK_SECONDS if self._deadlines else None

    def step(self, now: float) -> None:
        """Have the flows ended whose time has come."""
        tick = tick_at(now)
        left = set()
        while self._deadlines and self._deadlines[0][0] <= tick:
            _, number = heapq.heappop(self._deadlines)
            record = self._tables.backends.records[number]
            # Its id may be somebody else's by now, and then it has no flows any more.
            if record["flags"] & consts.BACKEND_ENDING and int(record["since"]) <= tick:
                left.add(number)
        if left:
            self._log.info("ending flows of endpoints that left", endpoints=len(left))
            self._end_flows(left)

    def _add(self, ending: Iterable[tuple[int, int]]) -> None:
        for number, tick in ending:
            heapq.heappush(self._deadlines, (tick, number))
