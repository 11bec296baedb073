"""The audit: counts of live flows that are wrong are set right, and no others."""

import numpy as np
import pytest

from lbctl.reconcile.recount import Recount
from lbctl.reconcile.sweep import Swept
from tests.support.fake_tables import FakeTables


class Sweeps:
    """Sweeps that find these numbers of flows."""

    def __init__(self) -> None:
        self.tables = FakeTables()
        self.services = np.zeros(self.tables.services.max_entries, np.int64)
        self.backends = np.zeros(self.tables.backends.max_entries, np.int64)
        self.counters = self.tables.service_counters.records
        self.live = self.tables.backend_live.records
        self.audit = Recount(self.tables)

    def run(self, meanwhile: int = 0) -> int:
        """One sweep, while service 3 opens so many flows and ends as many; returns how many counts
        were set right so far."""
        self.audit.begin()
        self.counters["connections"][3] += meanwhile
        empty = np.zeros(0, bool)
        self.audit.end(Swept(0.0, empty, empty, self.services, self.backends, empty))
        return self.audit.corrections


@pytest.fixture
def sweeps() -> Sweeps:
    made = Sweeps()
    made.tables.backends.records["service"][[7, 8]] = 3, 4
    made.services[[3, 4]] = 5, 1
    made.backends[[7, 8]] = 5, 1
    made.counters["live"][[3, 4]] = 5, 1
    made.live[[7, 8]] = 5, 1
    return made


def test_right_counts_stay(sweeps: Sweeps) -> None:
    assert [sweeps.run() for _ in range(4)] == [0, 0, 0, 0]


def test_what_is_wrong_twice_is_set_right(sweeps: Sweeps) -> None:
    sweeps.counters["live"][3] = 6
    sweeps.live[7], sweeps.live[9] = 4, 2
    assert sweeps.run() == 0
    assert (sweeps.counters["live"][3], sweeps.live[7]) == (6, 4)
    assert sweeps.run() == 3
    assert (sweeps.counters["live"][3], sweeps.live[7], sweeps.live[9]) == (5, 5, 0)
    assert sweeps.run() == 3


def test_another_number_the_second_time_is_looked_at_again(sweeps: Sweeps) -> None:
    sweeps.counters["live"][3] = 6
    sweeps.run()
    sweeps.counters["live"][3] = 7
    assert sweeps.run() == 0
    assert sweeps.run() == 1


def test_flows_that_come_and_go_are_no_difference(sweeps: Sweeps) -> None:
    """A sweep sees some of them, though the count is the same before and after."""
    sweeps.services[3] = 6
    sweeps.backends[7] = 6
    assert [sweeps.run(meanwhile=1) for _ in range(4)] == [0, 0, 0, 0]


def test_a_count_below_nothing_is_set_right(sweeps: Sweeps) -> None:
    sweeps.counters["live"][4] = np.uint64(2**64 - 1)
    sweeps.run()
    assert sweeps.run() == 1
    assert sweeps.counters["live"][4] == 1
