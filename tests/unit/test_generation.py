"""Programs: in which order they are loaded, put in place, and let go when maps have grown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ebpf import programs
from ebpf.errors import LbError
from ebpf.kernel import grace
from lbctl.agent.generation import LaterGeneration


class Rig:
    """Programs that are loaded when the test lets them, on one instance and one set of hooks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.work: Any = None
        self.key = "first"
        self.fails = False
        self.interfaces = SimpleNamespace(
            placed=None, attached=0, attach_all=lambda made: self.say(f"attach {made.name}")
        )
        instance = SimpleNamespace(
            switch=lambda: self.say("switch"),
            finish=lambda: self.say("finish"),
            forget_flow_tables=lambda: None,
        )
        self.generations = 0
        self.lists_fail = False
        monkeypatch.setattr(programs, "load_generation", self.load)
        monkeypatch.setattr(programs, "load_lists", self.load_lists)
        monkeypatch.setattr(programs, "count_generations", lambda instance: self.generations)
        monkeypatch.setattr(programs, "generation_key", lambda bundle, instance: self.key)
        monkeypatch.setattr(programs, "drop_other_generations", lambda *_: self.say("drop others"))
        monkeypatch.setattr(grace, "wait", lambda: self.say("wait"))
        parts: Any = SimpleNamespace(
            bundle=None,
            instance=instance,
            sockets=SimpleNamespace(attach=lambda made: None),
            keeper=SimpleNamespace(errand=lambda name, seconds: self),
            carrying=SimpleNamespace(carry=lambda: self.say("carry"), expected=False),
        )
        interfaces: Any = self.interfaces
        self.made = LaterGeneration(
            parts.bundle, parts.instance, interfaces, parts.sockets, parts.keeper, parts.carrying
        )
        self.made.maps_changed = lambda: self.say("maps changed")

    def say(self, what: str) -> None:
        self.told.append(what)

    @property
    def busy(self) -> bool:
        """The rig is the errand too."""
        return self.work is not None

    def send(self, work: Any) -> bool:
        if self.work is not None:
            return False
        self.work = work
        return True

    def load(self, *_: object, lists: bool, stopping: Any) -> Any:
        if self.fails:
            raise MemoryError
        self.say(f"load {self.key}" + " whole" * lists)
        self.stopping = stopping
        self.generations += 1
        name = self.key
        return SimpleNamespace(name=name, fds={}, close=lambda: self.say(f"close {name}"))

    def load_lists(self, generation: Any, *_: object) -> None:
        if self.lists_fail:
            raise LbError("refused")
        self.say(f"load lists of {generation.name}")

    def join(self, timeout: float) -> bool:
        """As the errand's."""
        return self.work is None

    def thread_runs(self) -> None:
        work, self.work = self.work, None
        work()

    def place(self) -> None:
        """Interfaces have what they were told last."""
        self.interfaces.placed = self.made._coming
        self.made.step(0.0)

    def take(self) -> list[str]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(monkeypatch)


def start(rig: Rig) -> None:
    """Until the first programs are in place, and all is told of it."""
    rig.made.begin()
    rig.made.attach()
    rig.thread_runs()
    rig.made.step(0.0)
    rig.place()
    rig.thread_runs()
    rig.made.step(0.0)


def test_a_start_carries_flows_before_programs_are_placed_and_after(rig: Rig) -> None:
    start(rig)
    assert rig.take() == [
        "load first",
        "carry",
        "switch",
        "maps changed",
        "attach first",
        "load lists of first",
        "wait",
        "carry",
        "finish",
        "maps changed",
        "drop others",
    ]
    assert rig.made.settled
    assert rig.made.fit
    assert rig.made.due() is None


def test_programs_over_lists_come_first_where_there_may_be_flows(rig: Rig) -> None:
    rig.generations = 1  # an earlier agent's
    start(rig)
    assert rig.take()[:2] == ["load first whole", "carry"]


def test_the_agent_does_not_go_on_without_programs_over_lists(rig: Rig) -> None:
    rig.lists_fail = True
    with pytest.raises(LbError, match="refused"):
        start(rig)
    assert isinstance(rig.made.failure, LbError)


def test_the_end_of_the_agent_ends_the_loading(rig: Rig) -> None:
    start(rig)
    assert not rig.stopping.is_set()
    rig.made.close()
    assert rig.stopping.is_set()


def test_nothing_is_loaded_before_it_is_begun_nor_placed_before_it_is_wanted(rig: Rig) -> None:
    rig.made.attach()
    assert rig.made.due() is None
    assert rig.work is None
    rig.made.begin()
    rig.made.begin()
    rig.thread_runs()
    assert rig.work is None
    assert rig.made.due() == 0.0


def test_programs_for_larger_maps_take_the_place_of_the_others(rig: Rig) -> None:
    start(rig)
    rig.take()
    rig.key = "second"
    assert not rig.made.fit
    assert rig.made.reload()
    assert not rig.made.settled
    assert not rig.made.reload()
    assert rig.made.placed  # the former ones serve meanwhile
    rig.thread_runs()
    rig.made.step(0.0)
    assert rig.made.due() is None  # some interface has not got them
    rig.place()
    assert not rig.made.settled
    rig.thread_runs()
    rig.made.step(0.0)
    assert rig.take()[-4:] == ["finish", "maps changed", "drop others", "close first"]
    assert rig.made.settled
    assert rig.made.fit


def test_programs_that_are_not_taken_leave_those_before(rig: Rig) -> None:
    start(rig)
    rig.take()
    rig.key, rig.fails = "second", True
    assert rig.made.reload()
    with pytest.raises(MemoryError):
        rig.thread_runs()
    rig.made.step(0.0)
    assert rig.made.settled
    assert not rig.made.fit
    assert rig.made.failure is None
    assert rig.take() == []


def test_without_the_first_ones_there_is_nothing_to_go_on_for(rig: Rig) -> None:
    rig.fails = True
    rig.made.begin()
    rig.thread_runs()
    assert isinstance(rig.made.failure, MemoryError)
