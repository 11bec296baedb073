"""What is wrong, for how long it may be, and who is told when: by a clock that moves by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lbctl.agent import conditions
from lbctl.agent.attaching import Unattached
from lbctl.agent.conditions import (
    LOADING_SECONDS,
    MOST_LINES,
    NODE_SECONDS,
    SOURCE_SECONDS,
    TURN_SECONDS,
    UPLINK_SECONDS,
    Conditions,
    bounded,
)
from lbctl.agent.parts import Parts
from lbctl.health.monitor import Verdict
from lbctl.model.records import Node
from lbctl.model.updates import SourceStatus

WELL = SourceStatus(connected=True, synced=True, complete=True, node_expected=True)


class Rig:
    """Parts that are as a test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.source = WELL
        self.interfaces = SimpleNamespace(unattached=(), attached=3)
        self.sockets: list[str] = []
        self.programs = SimpleNamespace(loaded=True, began=1000.0)
        self.threads: list[str] = []
        self.faults: list[str] = []
        self.unwritten = False
        self.facts = SimpleNamespace(name="node1", node=Node("node1"))
        self.verdict = Verdict()
        parts: Any = SimpleNamespace(
            source=SimpleNamespace(status=lambda: self.source),
            interfaces=self.interfaces,
            sockets=SimpleNamespace(problems=self.sockets),
            programs=self.programs,
            keeper=SimpleNamespace(problems=lambda: self.threads),
            guard=SimpleNamespace(problems=lambda: self.faults),
            facts=self.facts,
            health=SimpleNamespace(judge=self.judge, unwritten=lambda: self.unwritten),
        )
        self.conditions = Conditions(cast(Parts, parts), lambda: self.now)

    def judge(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def after(self, seconds: float) -> tuple[int, bool, bool]:
        """How many sentences there are, whether it is ready, whether load balancers may come."""
        self.now += seconds
        texts = self.conditions.look()
        assert tuple(texts) == self.verdict.problems
        assert self.conditions.settled == self.verdict.settled
        return len(texts), self.verdict.settled, self.verdict.fit


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_all_is_well(rig: Rig) -> None:
    assert rig.after(0) == (0, True, True)
    assert rig.conditions.due() is None


def test_an_unknown_node_is_said_at_once_and_unready_after_a_minute(rig: Rig) -> None:
    rig.facts.node = None
    assert rig.after(0) == (1, True, True)
    assert "no Node object is called node1" in rig.verdict.problems[0]
    assert rig.conditions.due() == rig.now + NODE_SECONDS
    assert rig.after(NODE_SECONDS - 1) == (1, True, True)
    assert rig.after(1) == (1, False, True)  # packets are served as well as can be
    rig.facts.node = Node("node1")
    assert rig.after(0) == (0, True, True)
    rig.facts.node = None
    assert rig.after(0) == (1, True, True)  # anew


@pytest.mark.parametrize(
    "source", [SourceStatus(connected=True), SourceStatus(connected=True, synced=True)]
)
def test_a_node_nobody_can_know_is_none_that_is_missing(rig: Rig, source: SourceStatus) -> None:
    rig.facts.node, rig.source = None, source
    assert rig.after(0) == (0, True, True)


def test_a_source_that_is_cut_off(rig: Rig) -> None:
    """Load balancers are not told: what is known is served, and it is so on every node."""
    rig.source = SourceStatus(synced=True, last_error="https://api: timed out")
    assert rig.after(0) == (0, True, True)
    rig.source = WELL
    assert rig.after(SOURCE_SECONDS) == (0, True, True)
    rig.source = SourceStatus(synced=True, last_error="https://api: timed out")
    assert rig.after(0) == (0, True, True)
    assert rig.after(SOURCE_SECONDS) == (1, False, True)
    assert "timed out" in rig.verdict.problems[0]
    assert rig.after(10_000) == (1, False, True)


def test_an_uplink_that_cannot_have_programs(rig: Rig) -> None:
    rig.interfaces.unattached = (Unattached("eth0", rig.now, True, "the slot is taken"),)
    assert rig.after(0) == (1, False, True)
    assert rig.verdict.problems == ("no programs on uplink eth0: the slot is taken",)
    assert rig.conditions.due() == rig.now + UPLINK_SECONDS
    assert rig.after(UPLINK_SECONDS) == (1, False, False)
    assert rig.conditions.due() is None


def test_one_pod_is_not_all_of_them(rig: Rig) -> None:
    rig.interfaces.unattached = (Unattached("veth1", rig.now, False, "the slot is taken"),)
    assert rig.after(UPLINK_SECONDS) == (1, False, True)
    rig.interfaces.unattached = tuple(
        Unattached(f"veth{i}", rig.now, False, "the slot is taken") for i in range(4)
    )
    assert rig.after(0) == (4, False, True)
    assert rig.after(TURN_SECONDS) == (5, False, False)


def test_a_turn_that_does_not_come(rig: Rig) -> None:
    rig.interfaces.unattached = (Unattached("veth1", rig.now, False, ""),)
    assert rig.after(TURN_SECONDS - 1) == (0, True, True)
    assert rig.after(1) == (1, False, True)


def test_changes_that_cannot_be_written(rig: Rig) -> None:
    rig.unwritten = True  # for a minute, as lbctl/health/monitor.py finds
    assert rig.after(0) == (1, False, False)


def test_programs_that_the_kernel_does_not_take(rig: Rig) -> None:
    rig.programs.loaded = False
    assert rig.after(LOADING_SECONDS - 1) == (0, True, True)
    assert rig.after(1) == (1, False, True)


def test_threads_sockets_and_parts_that_fail(rig: Rig) -> None:
    """Each says itself when it has lasted long enough."""
    rig.threads = ["thread status file: it is stuck"]
    assert rig.after(0) == (1, False, True)
    rig.faults = ["part X of the agent: KeyError"]
    rig.sockets.append("sockets of this node are not served")
    rig.source = SourceStatus(True, True, failing=("thread watch of nodes: ValueError",))
    assert rig.after(0) == (4, False, True)


def test_the_status_is_bounded(rig: Rig) -> None:
    rig.interfaces.unattached = tuple(
        Unattached(f"veth{i}", rig.now, False, "the slot is taken") for i in range(5000)
    )
    rig.conditions.look()
    assert len(rig.verdict.problems) == MOST_LINES + 1
    assert rig.verdict.problems[-1] == "... and 4900 more of this kind"
    assert bounded(["a", "b"], 2) == ["a", "b"]
    assert bounded(iter("abc"), 2) == ["a", "b", "... and 1 more of this kind"]


def test_every_bound_is_in_the_table() -> None:
    """docs/operations.md names each."""
    from tests.unit.test_docs import ROOT

    text = (ROOT / "docs" / "operations.md").read_text()
    table = text[text.index("### What each one says") :]
    table = table[: table.index("\n## ")]
    bounds = {value for name, value in vars(conditions).items() if name.endswith("_SECONDS")}
    for seconds in bounds:
        assert f"{seconds:.0f} s" in table
