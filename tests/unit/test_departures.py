"""Flows of endpoints that left: when they end, which of them, and by whom after a restart."""

from collections.abc import Collection

import pytest

from lbctl.datapath import consts
from lbctl.datapath.ticks import TICK_SECONDS
from lbctl.reconcile.departures import Departures
from lbctl.resolve.ports import Choice
from tests.support.planning import WEB, Node, endpoints, resolved

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Ended:
    """Takes down whose flows are to be ended."""

    def __init__(self) -> None:
        self.asked: list[set[int]] = []

    def __call__(self, backends: Collection[int]) -> None:
        self.asked.append(set(backends))


def leave(node: Node, seconds: float, told: Departures | None = None) -> set[int]:
    """All but one leave; returns the ids of those."""
    choice = Choice(flows_leave=seconds)
    node.apply(resolved("a/web", endpoints(A, B, C), (WEB,), choice=choice))
    plan = node.apply(resolved("a/web", endpoints(A), (WEB,), choice=choice))
    if told:
        told.note(plan)
    return {number for number, _ in plan.ending}


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
    left = leave(node, 30.0, departures)
    if restarted:
        departures = Departures(node.tables, ended)
    due = departures.due()
    assert due is not None
    assert 28 < due - node.now < 32
    run(departures, node.now + 20)
    assert ended.asked == []
    run(departures, due + TICK_SECONDS)
    assert ended.asked == [left]
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
