"""Endpoints that left, and whose flows are not to last as long as they like."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import structlog

from ebpf.errors import LbError
from lbctl import advice
from lbctl.datapath import consts
from lbctl.datapath.tables import Tables
from lbctl.plan.changes import Plan

TICK_SECONDS = (1 << consts.TICK_SHIFT) / 1e9

# Ends all flows with these references to backends (id and generation), in short steps.
EndFlows = Callable[[set[int]], Iterator[None]]


class Departures:
    """Their deadlines, in order. What the maps say of them is believed, so that the next agent
    knows what this one did: a backend that left has its deadline in its record."""

    def __init__(self, tables: Tables, end_flows: EndFlows) -> None:
        self._backends = tables.backends
        self._end_flows = end_flows
        self._deadlines: list[tuple[int, int]] = []  # tick, backend id
        self._running: Iterator[None] | None = None
        self._log = structlog.get_logger()
        records = tables.backends.records
        left = np.flatnonzero(records["flags"] & consts.BACKEND_ENDING)
        self._add(zip(left.tolist(), records["since"][left].tolist(), strict=True))

    def note(self, plan: Plan) -> None:
        """A plan was carried out."""
        self._add(plan.ending)

    def due(self) -> float | None:
        """When `step` has something to do."""
        if self._running:
            return 0.0
        return self._deadlines[0][0] * TICK_SECONDS if self._deadlines else None

    def step(self, now: float) -> None:
        """Some milliseconds of work."""
        try:
            if self._running is None:
                self._begin(now)
            elif next(self._running, self) is self:
                self._running = None
        except LbError as error:
            self._running = None
            self._log.error(
                "flows of endpoints that left go on", error=error.message, hint=advice.on(error)
            )

    def _add(self, ending: Iterable[tuple[int, int]]) -> None:
        for number, tick in ending:
            heapq.heappush(self._deadlines, (tick, number))

    def _begin(self, now: float) -> None:
        tick = consts.tick_at(now)
        references = set()
        while self._deadlines and self._deadlines[0][0] <= tick:
            _, number = heapq.heappop(self._deadlines)
            record = self._backends.records[number]
            # Its id may be somebody else's by now, and then it has no flows any more.
            if record["flags"] & consts.BACKEND_ENDING and int(record["since"]) <= tick:
                generation = int(record["generation"])
                references.add(number | generation << consts.BACKEND_GENERATION_SHIFT)
        if references:
            self._log.info("ending flows of endpoints that left", endpoints=len(references))
            self._running = self._end_flows(references)
