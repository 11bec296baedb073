"""The sweep: which flows it ends, and what it says is still referred to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lbctl.datapath import clock, consts
from lbctl.inspect.traffic import totals
from lbctl.program import config
from lbctl.reconcile import sweep
from lbctl.reconcile.sweep import Sweep, Swept
from lbctl.resolve.node import NodeFacts
from tests.support.fake_cells import FakeFlows, FakeFlowTable
from tests.support.fake_tables import FakeTables

TCP, UDP = 6, 17
NOW = 100_000
CLIENT, SERVICE, BACKEND = ("10.0.0.9", 4000), ("10.96.0.1", 80), ("10.0.1.1", 8080)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> FakeTables:
    made = FakeTables()
    config.store(made.config, NodeFacts("n"), config.DataPathSettings(False))
    monkeypatch.setattr(clock, "current_beat", lambda: NOW)
    return made


@pytest.fixture
def cells() -> FakeFlowTable:
    return FakeFlowTable()


@pytest.fixture
def flow(cells: FakeFlowTable) -> Callable[..., list[int]]:
    """Opens a flow whose two directions were seen so many beats ago."""

    def open_flow(age: int = 0, reply_age: int | None = None, **fields: Any) -> list[int]:
        reply = {"seen": NOW - (age if reply_age is None else reply_age)}
        reply |= fields.pop("reply", {})
        proto = fields.pop("proto", TCP)
        return cells.add_flow(
            proto, CLIENT, SERVICE, BACKEND, reply=reply, **{"seen": NOW - age} | fields
        )

    return open_flow


def run(tables: FakeTables, *families: FakeFlowTable, began: float = 5.0) -> Swept:
    *steps, found = Sweep(tables, FakeFlows(families)).run(began)
    assert all(step is None for step in steps)
    assert found is not None
    assert found.began == began
    return found


def limit(name: str) -> int:
    return clock.beats(config.TIMEOUTS[name])


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (consts.STATE_SYN, "syn_timeout"),
        (consts.STATE_ESTABLISHED, "established_timeout"),
        (consts.STATE_CLOSING, "closing_timeout"),
        (consts.STATE_FIN_WAIT, "fin_wait_timeout"),
        (consts.STATE_RESET, "reset_timeout"),
    ],
)
def test_a_flow_ends_when_its_state_allows_no_more(
    tables: FakeTables,
    cells: FakeFlowTable,
    flow: Callable[..., list[int]],
    state: int,
    name: str,
) -> None:
    flow(limit(name), state=state)
    assert run(tables, cells).ended == 0
    flow(limit(name) + 1, state=state)
    assert run(tables, cells).ended == 1
    assert cells.rooms().used == 2


def test_a_close_that_nobody_completes_ends_in_minutes(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(clock.beats(170), state=consts.STATE_FIN_WAIT)
    assert run(tables, cells).ended == 0
    flow(clock.beats(190), state=consts.STATE_FIN_WAIT)
    assert run(tables, cells).ended == 1


def test_a_flow_lives_as_long_as_either_direction(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    over = limit("syn_timeout") + 1
    flow(over, 0, state=consts.STATE_SYN)
    flow(0, over, state=consts.STATE_SYN)
    assert run(tables, cells).ended == 0
    assert [end.why for end in cells.ended] == []


def test_datagrams_end_later_if_the_backend_answered(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    age = limit("datagram_timeout") + 1
    udp = {"proto": UDP, "state": consts.STATE_DATAGRAM}
    flow(age, **udp, reply={"flags": 0})
    flow(age, **udp)
    assert run(tables, cells).ended == 1
    assert run(tables, cells).ended == 0
    tables.config.records["datagram_stream_timeout"] = age - 1
    assert run(tables, cells).ended == 1


def test_a_closed_flow_rests_only_if_its_server_closed_first(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    closed = {"state": consts.STATE_TIME_WAIT}
    flow(3, **closed)
    flow(3, **closed, reply={"flags": consts.CELL_FIRST})
    flow(2, **closed)
    found = run(tables, cells)
    assert (found.ended, found.over) == (1, 3)
    flow(limit("time_wait_timeout") + 1, **closed, reply={"flags": consts.CELL_FIRST})
    assert run(tables, cells).ended == 1


def test_all_four_cells_of_a_masqueraded_flow_count(
    tables: FakeTables, cells: FakeFlowTable
) -> None:
    masqueraded, old = consts.CELL_MASQUERADED, NOW - limit("established_timeout") - 1
    common = {"state": consts.STATE_ESTABLISHED, "seen": old, "service": 1, "backend": 1}
    side = consts.CELL_SIDE | masqueraded
    ring: list[dict[str, Any]] = [
        common | {"kind": masqueraded},
        common | {"kind": masqueraded | consts.CELL_REPLY},
        common | {"kind": side | consts.CELL_REPLY},
        common | {"kind": side, "seen": NOW},
    ]
    cells.open(*ring)
    assert run(tables, cells).ended == 0
    ring[3]["seen"] = old
    cells.open(*ring)
    found = run(tables, cells)
    assert found.ended == 1
    assert cells.rooms().used == 4


def test_lone_cells_have_their_own_time(tables: FakeTables, cells: FakeFlowTable) -> None:
    fragment = {"kind": consts.CELL_FRAGMENT, "state": consts.STATE_DATAGRAM}
    note = {"kind": consts.CELL_NOTE | consts.CELL_REPLY, "state": consts.STATE_ESTABLISHED}
    old = NOW - limit("datagram_timeout") - 1
    for cell in (fragment, note):
        cells.open({**cell, "seen": old})
        cells.open({**cell, "seen": NOW})
    assert run(tables, cells).ended == 1
    assert cells.rooms().used == 3


def test_a_cell_seen_after_the_clock_was_read_is_not_old(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(-3, state=consts.STATE_SYN)
    assert run(tables, cells).ended == 0


def test_beats_may_wrap(
    tables: FakeTables,
    cells: FakeFlowTable,
    flow: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow(seen=2**32 - 5, state=consts.STATE_SYN, reply={"seen": 2**32 - 9})
    monkeypatch.setattr(clock, "current_beat", lambda: 10)
    assert run(tables, cells).ended == 0
    monkeypatch.setattr(clock, "current_beat", lambda: limit("syn_timeout"))
    assert run(tables, cells).ended == 1


def test_a_flow_whose_cell_is_anothers_by_now_is_not_ended(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    place, _ = flow(limit("syn_timeout") + 1, state=consts.STATE_SYN)
    steps = Sweep(tables, FakeFlows([cells])).run(5.0)
    next(steps)  # looked at
    cells.cells["generation"][place] += 1
    *_, found = steps
    assert found is not None
    assert found.ended == 0


def test_claimed_cells_that_nobody_comes_back_for_are_freed(
    tables: FakeTables, cells: FakeFlowTable
) -> None:
    (left,) = cells.open({"state": consts.STATE_BUSY})
    (reused,) = cells.open({"state": consts.STATE_BUSY})
    sweeps = Sweep(tables, FakeFlows([cells]))

    def again(began: float) -> int:
        *_, found = sweeps.run(began)
        assert found is not None
        return found.abandoned

    assert again(1.0) == 0
    cells.cells["generation"][reused] += 7
    assert again(1.0 + sweep.BUSY_SECONDS / 2) == 0
    assert again(1.0 + sweep.BUSY_SECONDS) == 1
    assert [end.place for end in cells.ended] == [left]
    assert again(1.0 + 2 * sweep.BUSY_SECONDS) == 1


def test_flows_of_doomed_backends_end_whatever_they_do(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(backend=7 | 3 << 24)
    flow(backend=8)
    *_, found = Sweep(tables, FakeFlows([cells])).run(5.0, {7, 9})
    assert found is not None
    assert found.ended == 1
    assert [end.why for end in cells.ended] == [consts.END_BACKEND]
    assert set(cells.cells["backend"][cells.cells["state"] != consts.STATE_FREE].tolist()) == {8}


def test_it_says_what_flows_refer_to(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(service=5, backend=17 | 3 << 24)
    flow(service=5, backend=17 | 4 << 24)
    flow(service=6, backend=18, state=consts.STATE_TIME_WAIT)
    flow(service=9, backend=0, kind=consts.CELL_DIRECT)
    flow(service=60_000, backend=0xFFFFFF)  # of no map entry: ignored
    found = run(tables, cells)
    assert np.flatnonzero(found.services).tolist() == [5, 6, 9]
    assert np.flatnonzero(found.backends).tolist() == [0, 17, 18]
    assert {i: int(found.live_services[i]) for i in np.flatnonzero(found.live_services)} == {5: 2}
    assert {i: int(found.live_backends[i]) for i in np.flatnonzero(found.live_backends)} == {17: 2}
    assert found.cells == {"4": 10}


def test_both_families_are_swept(tables: FakeTables, cells: FakeFlowTable) -> None:
    six = FakeFlowTable("6")
    old = {"seen": NOW - limit("reset_timeout") - 1, "state": consts.STATE_RESET}
    cells.add_flow(TCP, CLIENT, SERVICE, BACKEND, reply=old, **old)
    six.add_flow(TCP, ("fd00::9", 1), ("fd00:96::1", 80), ("fd00:1::1", 80), reply=old, **old)
    assert run(tables, cells, six).ended == 2


def test_steps_are_short(
    tables: FakeTables,
    cells: FakeFlowTable,
    flow: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lbctl.datapath.flows.STEP_CELLS", 64)
    monkeypatch.setattr(sweep, "_LISTED", 4)
    for _ in range(50):
        flow(limit("reset_timeout") + 1, state=consts.STATE_RESET)
    most = before = 0
    for _ in Sweep(tables, FakeFlows([cells])).run(0.0):
        most, before = max(most, len(cells.ended) - before), len(cells.ended)
    assert cells.rooms().used == 0
    assert 0 < most <= 4


def test_a_sweep_over_tables_that_are_exchanged_comes_to_nothing(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(limit("reset_timeout") + 1, state=consts.STATE_RESET)
    flows = FakeFlows([cells])
    steps = Sweep(tables, flows).run(5.0)
    next(steps)
    flows.flow_tables = (FakeFlowTable(),)
    assert list(steps) == []
    assert not cells.ended


def test_what_living_flows_carried_is_what_a_look_at_all_says(
    tables: FakeTables, cells: FakeFlowTable, flow: Callable[..., list[int]]
) -> None:
    flow(packets=5, bytes=500)
    flow(service=2, kind=consts.CELL_MASQUERADED)
    flow(service=2, kind=consts.CELL_DIRECT)
    flow(service=10_000)
    found = run(tables, cells).carried
    assert found["packets_in"][[1, 2]].tolist() == [5, 11]
    ended = np.zeros_like(tables.service_counters.records)
    assert (found == totals(ended, [cells])).all()
