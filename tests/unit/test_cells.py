"""What is computed from arrays of cells, against what one would say of each flow by itself."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ebpf import flowtable
from lbctl.datapath import consts, flows
from tests.support.fake_cells import FakeFlowTable

NOW = 5000
STATES = (
    consts.STATE_SYN,
    consts.STATE_ESTABLISHED,
    consts.STATE_CLOSING,
    consts.STATE_FIN_WAIT,
    consts.STATE_RESET,
    consts.STATE_TIME_WAIT,
    consts.STATE_DATAGRAM,
)
LIMITS = {state: 10 * (place + 1) for place, state in enumerate(STATES)}
STREAM = 500


@dataclass(frozen=True)
class Flow:
    """A flow as it is opened: of each cell when it was seen, and its flags."""

    state: int
    cells: list[tuple[int, int]]
    masqueraded: bool
    counted: int

    def open(self, table: FakeFlowTable) -> int:
        kinds = [0, consts.CELL_REPLY, consts.CELL_SIDE | consts.CELL_REPLY, consts.CELL_SIDE]
        places = table.open(
            *(
                {
                    "state": self.state,
                    "kind": kinds[place] | consts.CELL_MASQUERADED * self.masqueraded,
                    "seen": seen,
                    "flags": flags,
                    "backend": self.counted,
                    "service": 1,
                }
                for place, (seen, flags) in enumerate(self.cells)
            )
        )
        return places[0]

    def ends_at(self) -> int:
        """The last beat at which it is not idle."""
        limit = LIMITS[self.state]
        flags = self.cells[1][1]
        if self.state == consts.STATE_DATAGRAM and flags & consts.CELL_REPLIED:
            limit = STREAM
        if self.state == consts.STATE_TIME_WAIT and not flags & consts.CELL_FIRST:
            limit = flows.OVER_BEATS
        return max(seen for seen, _ in self.cells) + limit


CELL = st.tuples(st.integers(NOW - 600, NOW + 3), st.integers(0, 31))
FLOWS = st.lists(
    st.builds(
        lambda state, cells, four, counted: Flow(state, cells[: 4 if four else 2], four, counted),
        st.sampled_from(STATES),
        st.lists(CELL, min_size=4, max_size=4),
        st.booleans(),
        st.integers(0, 9),
    ),
    max_size=30,
)


def limits() -> flows.Numbers:
    table = np.zeros((2, 256), np.int64)
    for state, beats in LIMITS.items():
        table[:, state] = beats
    table[1, consts.STATE_DATAGRAM] = STREAM
    return table


@given(FLOWS, st.integers(0, 5))
def test_the_idle_are_those_that_no_cell_of_was_seen(opened: list[Flow], gap: int) -> None:
    table = FakeFlowTable(cells=256)
    table.cells["state"][10 : 10 + gap] = consts.STATE_BUSY  # others lie between
    first = {flow.open(table): flow for flow in opened}
    cells = table.at(np.arange(256))
    heads = flows.take(cells, flows.forward(cells))
    assert set(heads["place"].tolist()) == first.keys()
    rings = flows.follow(heads, table.at)
    idle = set(heads["place"][flows.idle(rings, limits(), NOW)].tolist())
    assert idle == {place for place, flow in first.items() if flow.ends_at() < NOW}
    assert rings.seen.tolist() == [
        max(seen for seen, _ in first[place].cells) for place in heads["place"].tolist()
    ]


@given(FLOWS)
def test_live_counts_are_those_of_flows_with_a_backend_that_are_not_over(
    opened: list[Flow],
) -> None:
    table = FakeFlowTable(cells=256)
    for flow in opened:
        flow.open(table)
    cells = table.at(np.arange(256))
    over = (consts.STATE_RESET, consts.STATE_TIME_WAIT)
    expected = [f.counted for f in opened if f.counted and f.state not in over]
    assert sorted(cells["backend"][flows.counted(cells)].tolist()) == sorted(expected)


@given(FLOWS, st.data())
def test_a_ring_that_broke_meanwhile_is_followed_as_far_as_it_goes(
    opened: list[Flow], data: Any
) -> None:
    table = FakeFlowTable(cells=256)
    first = [flow.open(table) for flow in opened]
    cells = table.at(np.arange(256))
    heads = flows.take(cells, flows.forward(cells))
    for place in first:
        if data.draw(st.booleans()):
            broken = int(table.cells["next"][place])
            table.cells["generation"][broken] += 1
    rings = flows.follow(heads, table.at)
    for place, reply in zip(heads["place"].tolist(), rings.reply, strict=True):
        own = int(table.cells["generation"][place])
        assert int(reply["generation"]) in (0, own)


def test_cells_are_taken_byte_for_byte() -> None:
    raw = np.arange(1000 * flowtable.CELL.itemsize, dtype=np.uint64).astype(np.uint8) | 1
    which = np.arange(0, 1000, 3)
    taken = flows.take(raw.view(flowtable.CELL), which)
    assert taken.tobytes() == raw.reshape(1000, flowtable.CELL.itemsize)[which].tobytes()
