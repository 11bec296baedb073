"""Flows of endpoints that left: when they end, which of them, and by whom after a restart."""

from collections.abc import Iterator

import numpy as np
import pytest

from lbctl.datapath import consts
from lbctl.reconcile.departures import TICK_SECONDS, Departures
from lbctl.reconcile.ending import end_flows
from lbctl.resolve.ports import Choice
from tests.support.fake_tables import FakeHash, FakeTables
from tests.support.planning import WEB, Node, endpoints, resolved

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Ended:
    """Takes down which references are to be ended."""

    def __init__(self) -> None:
        self.asked: list[set[int]] = []

    def __call__(self, references: set[int]) -> Iterator[None]:
        self.asked.append(references)
        yield None


def leave(node: Node, seconds: float, told: Departures | None = None) -> set[int]:
    """All but one leave; returns the references of those."""
    choice = Choice(flows_leave=seconds)
    node.apply(resolved("a/web", endpoints(A, B, C), (WEB,), choice=choice))
    plan = node.apply(resolved("a/web", endpoints(A), (WEB,), choice=choice))
    if told:
        told.note(plan)
    records = node.tables.backends.records
    return {
        number | int(records["generation"][number]) << consts.BACKEND_GENERATION_SHIFT
        for number, _ in plan.ending
    }


def run(departures: Departures, now: float) -> None:
    for _ in range(10):
        due = departures.due()
        if due is None or due > now:
            return
        departures.step(now)
    pytest.fail("it never ends")


@pytest.mark.parametrize("restarted", [False, True])
def test_they_end_at_their_deadline_and_not_before(restarted: bool) -> None:
    node, ended = Node(), Ended()
    departures = Departures(node.tables, ended)
    references = leave(node, 30.0, departures)
    if restarted:
        departures = Departures(node.tables, ended)
    due = departures.due()
    assert due is not None
    assert 28 < due - node.now < 32
    run(departures, node.now + 20)
    assert ended.asked == []
    run(departures, due + TICK_SECONDS)
    assert ended.asked == [references]
    assert departures.due() is None


def test_at_once() -> None:
    node, ended = Node(), Ended()
    departures = Departures(node.tables, ended)
    choice = Choice(flows_leave=0.0)
    node.apply(resolved("a/web", endpoints(A, B), (WEB,), choice=choice))
    departures.note(node.apply(resolved("a/web", endpoints(A), (WEB,), choice=choice)))
    due = departures.due()
    assert due is not None
    assert due <= node.now
    run(departures, node.now)
    assert len(ended.asked) == 1


def test_an_id_that_is_somebody_elses_is_left_alone() -> None:
    node, ended = Node(), Ended()
    leave(node, 1.0)
    departures = Departures(node.tables, ended)
    node.tables.backends.records["flags"][[2, 3]] = consts.BACKEND_SERVING
    run(departures, node.now + 100)
    assert ended.asked == []


def flow(table: FakeHash, port: int, backend: int, proto: int, flags: int = 0) -> None:
    table.put(
        table.spec.key.pack(sport=port, proto=proto),
        table.spec.value.pack(backend=backend, flags=flags, service=1),
    )


def test_only_their_flows_end_and_in_steps() -> None:
    tables = FakeTables()
    for number in range(8):
        backend = 5 | (1 + number % 2) << consts.BACKEND_GENERATION_SHIFT
        flow(tables.flows4, number, backend, 6)
        flow(tables.flows6_lru, number, backend, 17, consts.FLOW_REPLY)
    flow(tables.flows4_lru, 99, 5 | 1 << consts.BACKEND_GENERATION_SHIFT, 6, consts.FLOW_DIRECT)
    flow(tables.flows4, 100, 6 | 1 << consts.BACKEND_GENERATION_SHIFT, 6)
    steps = list(end_flows(tables, {5 | 1 << consts.BACKEND_GENERATION_SHIFT}))
    assert len(steps) > 4
    left = {name: len(getattr(tables, name).entries) for name in ("flows4", "flows6_lru")}
    assert left == {"flows4": 5, "flows6_lru": 4}
    assert len(tables.flows4_lru.entries) == 1  # straight to the same address: no service's
    backends = np.concatenate([t.read_all()[1]["backend"] for t in (tables.flows4,)])
    assert (5 | 1 << consts.BACKEND_GENERATION_SHIFT) not in backends
