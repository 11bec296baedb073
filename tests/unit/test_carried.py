"""What is said of services between sweeps: all that flows carried, and never less than before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lbctl.reconcile.carried import Carried
from tests.support.fake_tables import COUNTERS, FakeTables

WEB = 1
# A flow by number, and packets that it carries; 0: it ends.
EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), max_size=4)


class Service:
    """Flows that live have packets of their own; what ended ones had is counted."""

    def __init__(self) -> None:
        self.tables = FakeTables()
        self.carried = Carried(self.tables)
        self.living = [0] * 5

    @property
    def ended(self) -> int:
        return int(self.tables.service_counters.records["packets_in"][WEB])

    @property
    def truth(self) -> int:
        return sum(self.living) + self.ended

    def happens(self, events: Sequence[tuple[int, int]]) -> None:
        for flow, packets in events:
            if packets:
                self.living[flow] += packets
            else:
                self.tables.service_counters.records["packets_in"][WEB] += self.living[flow]
                self.living[flow] = 0

    def sweep(
        self, before: Sequence[tuple[int, int]] = (), after: Sequence[tuple[int, int]] = ()
    ) -> int:
        """What is said then. These happen in it, before and after it looks at the flows."""
        found = np.zeros(len(self.tables.service_counters.records), COUNTERS.dtype)
        self.carried.begin()
        self.happens(before)
        found["packets_in"][WEB] = sum(self.living)
        self.happens(after)
        self.carried.end(found)
        return self.said

    @property
    def said(self) -> int:
        assert self.carried.totals is not None
        return int(self.carried.totals["packets_in"][WEB])


@given(st.lists(st.tuples(EVENTS, EVENTS, EVENTS), max_size=6))
def test_it_never_gets_less_and_comes_to_the_truth(
    sweeps: list[tuple[list[tuple[int, int]], ...]],
) -> None:
    made = Service()
    made.happens([(0, 7)])
    said = made.sweep()
    assert said == 7
    for between, before, after in sweeps:
        made.happens(between)
        now = made.sweep(before, after)
        assert said <= now <= made.truth
        said = now
    assert made.sweep() == made.truth


@given(EVENTS, EVENTS, EVENTS)
def test_the_first_says_no_less_than_the_agent_before(
    past: list[tuple[int, int]], before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    made = Service()
    made.happens(past)
    there = made.truth
    assert made.sweep(before, after) >= there


def test_who_gets_an_id_begins_with_nothing() -> None:
    made = Service()
    made.happens([(0, 7)])
    made.sweep()
    made.carried.forget([WEB])
    assert made.said == 0


def test_nothing_is_said_before_a_sweep_and_maps_may_grow() -> None:
    made = Service()
    assert made.carried.totals is None
    made.happens([(0, 7)])
    made.sweep()
    larger = FakeTables(services=128).service_counters
    larger.records[:64] = made.tables.service_counters.records
    made.tables.service_counters = larger
    assert made.sweep() == 7
    made.happens([(0, 1)])
    assert made.sweep() == 8
