"""What the agent does when tables are about to be full, and when it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from ebpf import flowtable
from ebpf.compile import constants, source
from ebpf.errors import KernelError
from ebpf.flowtable import Rooms
from ebpf.layouts import Bundle, MapSpec, Record
from ebpf.layouts import Field as RecordField
from ebpf.maps.declared import USES
from ebpf.maps.sizes import Sizes
from lbctl.agent import flowgrowth
from lbctl.agent.flowgrowth import FlowGrowth
from lbctl.agent.growth import LOOK_SECONDS, Growth
from lbctl.plan.rooms import NOTHING, Need
from lbctl.program import readback

MOST = Sizes(65536, 262144, 131072)
FIRST = MOST.at_first()
WORD = Record("", 4, (RecordField("", 0, 4, 0, "u32"),))


def bundle() -> Bundle:
    """Every declared map, uncompiled."""
    maps = {name: MapSpec(name, use.kinds[0], 0, WORD, WORD) for name, use in USES.items()}
    enums = constants.constants((source.source_dir() / "consts.h").read_text())
    return Bundle("", "live", {}, maps, enums | {"REASON_MAX": 20})


class Rig:
    """An instance of numbers, programs that load when told, a planner that says what is used."""

    def __init__(self) -> None:
        self.bundle = bundle()
        self.entries = FIRST.max_entries(self.bundle)
        self.coming: dict[str, int] = {}
        self.told: list[str] = []
        self.fit = self.settled = True
        self.no_memory = False
        self.learned: dict[str, int] = {}
        self.waiting = self.expected = NOTHING
        self.flows = SimpleNamespace(busy=False, under_way=False, step=lambda now: None)
        pool = SimpleNamespace(taken=0)
        self.places = 0
        self.planner = SimpleNamespace(
            table_places=0, service_ids=pool, backend_ids=SimpleNamespace(taken=0),
            regions=SimpleNamespace(taken=0), claims=(),
        )  # fmt: skip
        reconciler: Any = SimpleNamespace(
            planner=self.planner,
            waiting_for=lambda: self.waiting,
            known=SimpleNamespace(expected=lambda: self.expected),
            expected_places=lambda: self.places,
            grown=lambda: self.told.append("grown"),
        )
        known: Any = self
        self.growth = Growth(
            self.bundle, known, known, reconciler, known.flows,
            SimpleNamespace(wanted=lambda: self.learned), MOST,  # type: ignore[arg-type]
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return self.map(name)

    def map(self, name: str) -> Any:
        return SimpleNamespace(max_entries=self.entries[name])

    def enlarge(self, entries: Mapping[str, int]) -> None:
        if entries and self.no_memory:
            raise KernelError("cannot create map backends", 12)
        self.coming = dict(entries)
        self.fit = not entries

    def reload(self) -> bool:
        self.told.append("reload")
        self.settled = False
        return True

    def switch(self) -> None:
        self.entries |= self.coming
        self.coming = {}
        self.told.append("switch")

    def finish(self) -> None:
        self.told.append("finish")

    def loaded(self, taken: bool = True) -> None:
        """The kernel is done with the programs."""
        self.settled = True
        if taken:
            self.switch()
            self.fit = True


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_is_done_while_there_is_room(rig: Rig) -> None:
    rig.planner.service_ids.taken = FIRST.services * 3 // 4
    for now in range(5):
        rig.growth.step(float(now))
    assert rig.told == []
    assert rig.growth.due() == 4.0 + LOOK_SECONDS


def test_steps_that_flows_take_do_not_wait_for_the_next_look(rig: Rig) -> None:
    rig.flows.under_way = True
    rig.growth.step(1.0)
    assert (rig.growth.due() or 9) < 1.2


def test_all_maps_that_are_written_together_grow_together(rig: Rig) -> None:
    rig.planner.service_ids.taken = FIRST.services * 3 // 4 + 1
    rig.growth.step(1.0)
    assert rig.told == ["reload"]
    assert rig.coming["services"] == rig.coming["names"] == 1536
    assert rig.coming["backends"] == rig.entries["backends"]
    assert rig.coming.keys() >= {"frontends", "slots", "backend_live", "service_counters"}
    assert not rig.coming.keys() & {"cells4a", "affinity", "config"}
    rig.growth.step(2.0)  # loading
    assert rig.told == ["reload"]
    rig.loaded()
    rig.growth.step(3.0)
    assert rig.told == ["reload", "switch"]


def test_those_who_wait_count(rig: Rig) -> None:
    rig.waiting = Need(1, 2, 20_000, 20_000, 0)
    rig.growth.step(1.0)
    assert rig.coming["backends"] // 2 * 0.75 >= 10_000


def test_no_more_than_the_bound(rig: Rig) -> None:
    rig.waiting = Need(10**6, 10**6, 10**9, 10**9, 0)
    rig.growth.step(1.0)
    assert rig.coming["services"] == MOST.services
    assert rig.coming["backends"] == 2 * MOST.endpoints
    rig.loaded()
    rig.growth.step(2.0)
    assert rig.told == ["reload", "switch"]


def test_without_memory_it_is_said_and_tried_again_later(rig: Rig) -> None:
    rig.waiting = Need(1000, 0, 0, 0, 0)
    rig.no_memory = True
    rig.growth.step(1.0)
    assert rig.told == []
    assert "cannot create map backends" in rig.growth.problem
    assert "1,000 service ports wait" in rig.growth.problem
    later = rig.growth.due()
    assert later is not None
    assert later > 30.0
    rig.no_memory = False
    rig.growth.step(later)
    assert rig.told == ["reload"]
    assert rig.growth.problem == ""


def test_programs_that_the_kernel_does_not_take_are_not_asked_for_each_second(rig: Rig) -> None:
    rig.waiting = Need(1000, 0, 0, 0, 0)
    rig.growth.step(1.0)
    rig.loaded(taken=False)
    rig.growth.step(2.0)
    assert rig.told == ["reload"]
    assert rig.coming == {}
    assert "the kernel does not take programs" in rig.growth.problem
    assert (rig.growth.due() or 0) > 30.0


def test_a_first_start_makes_room_before_programs_are_loaded(rig: Rig) -> None:
    rig.expected = Need(10_000, 40_000, 200_000, 100_000, 0)
    rig.growth.fit()
    assert rig.told == ["switch", "finish", "grown"]
    room = readback.room_for(rig.entries)
    assert rig.expected.fits(room)
    rig.growth.fit()
    assert rig.told == ["switch", "finish", "grown"]


def test_what_an_earlier_agent_programmed_is_not_asked_for_twice(rig: Rig) -> None:
    need = Need(1000, 3000, 9000, 6000, 0)
    rig.expected = need
    rig.growth.fit()
    assert rig.told == ["switch", "finish", "grown"]
    for name, taken in (
        ("service_ids", need.services), ("backend_ids", need.backends), ("regions", need.slots)
    ):  # fmt: skip
        setattr(rig.planner, name, SimpleNamespace(taken=taken))
    rig.planner.claims = range(need.frontends)
    rig.growth.fit()
    assert rig.told == ["switch", "finish", "grown"]


def test_tables_by_hash_ask_for_room_as_endpoints_do(rig: Rig) -> None:
    places = 4 * FIRST.endpoints
    rig.planner.table_places = places * 3 // 4
    rig.growth.step(1.0)
    assert rig.told == []
    rig.planner.table_places = 3 * places
    rig.growth.step(2.0)
    assert rig.told == ["reload"]
    assert 2 * rig.coming["hash_tables"] >= 3 * places


def test_a_first_start_makes_room_for_tables_by_hash(rig: Rig) -> None:
    rig.places = 8 * FIRST.endpoints
    rig.growth.fit()
    assert rig.told == ["switch", "finish", "grown"]
    assert 2 * rig.entries["hash_tables"] >= rig.places


def test_maps_that_only_programs_fill_grow_by_themselves(rig: Rig) -> None:
    rig.learned = {"affinity": 8192}
    rig.growth.step(1.0)
    assert rig.coming == {"affinity": 8192}


class FakeSteps:
    """ebpf.growth.Growth of one family."""

    def __init__(self, told: list[str], family: str) -> None:
        self.told, self.family = told, family
        self.step = "begin"
        self.cells_left = 0

    def begin(self, buckets: int) -> None:
        self.told.append(f"begin {self.family} {buckets}")
        self.step = "leave"

    def leave(self) -> None:
        self.told.append(f"leave {self.family}")
        self.step = "move"

    def left(self) -> int:
        return self.cells_left

    def move(self, programs: object, most: int) -> int:
        moved, self.cells_left = self.cells_left, 0
        self.told.append(f"move {self.family} {moved}")
        return moved

    def finish(self) -> None:
        self.told.append(f"finish {self.family}")
        self.step = "begin"

    def tidy(self) -> None:
        pass


def tables_of(rooms: dict[str, Rooms], refused: list[int] | None = None) -> list[Any]:
    """Both families', which read these numbers."""
    told = refused or [0]
    return [
        SimpleNamespace(family=f, rooms=lambda f=f: rooms[f], refused=lambda: told[0])
        for f in flowtable.FAMILIES
    ]


def test_a_table_of_flows_goes_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    steps = {family: FakeSteps(told, family) for family in flowtable.FAMILIES}
    monkeypatch.setattr(flowgrowth, "Steps", lambda instance, family: steps[family])
    rooms = {"4": Rooms(100, 800), "6": Rooms(0, 800)}
    tables = tables_of(rooms)
    programs: Any = SimpleNamespace(fit=True, alone=lambda: True, in_place={"move_listed4": 3})
    instance: Any = SimpleNamespace(flow_tables=tables)
    errand: Any = SimpleNamespace(busy=False, send=lambda work: work())
    growth = FlowGrowth(instance, programs, errand, most_flows=3000)
    growth.step(1.0)
    assert told == []
    rooms["4"] = Rooms(401, 800)
    growth.step(2000.0)  # that came in slowly
    assert told == ["begin 4 200"]
    programs.fit = False
    growth.step(2001.0)
    assert told == ["begin 4 200"]  # until programs are there for it
    programs.fit, programs.alone = True, lambda: False
    growth.step(2002.0)
    assert told == ["begin 4 200"]  # ... and no others
    programs.alone = lambda: True
    growth.step(2003.0)
    steps["4"].cells_left = 7
    growth.step(2004.0)
    growth.step(2005.0)
    assert told == ["begin 4 200", "leave 4", "move 4 7", "move 4 0", "finish 4"]


def test_a_full_table_grows_by_how_many_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    steps = {family: FakeSteps(told, family) for family in flowtable.FAMILIES}
    monkeypatch.setattr(flowgrowth, "Steps", lambda instance, family: steps[family])
    refused = [70]
    tables = tables_of({"4": Rooms(300, 800), "6": Rooms(0, 800)}, refused)
    programs: Any = SimpleNamespace(fit=True, alone=lambda: True, in_place={})
    instance: Any = SimpleNamespace(flow_tables=tables)
    errand: Any = SimpleNamespace(busy=False)
    growth = FlowGrowth(instance, programs, errand, most_flows=1 << 20)
    growth.step(1.0)
    assert told == []  # what was refused before this agent says nothing of now
    assert not growth.under_way
    refused[0] = 20_070
    growth.step(2000.0)
    cells = [8 * int(line.split()[2]) for line in told]
    assert cells
    assert min(cells) // 2 >= 2 * 20_000
    assert growth.under_way


def test_a_table_of_flows_stays_below_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    steps = {family: FakeSteps(told, family) for family in flowtable.FAMILIES}
    monkeypatch.setattr(flowgrowth, "Steps", lambda instance, family: steps[family])
    tables = tables_of({"4": Rooms(790, 800), "6": Rooms(2000, 2400)})
    programs: Any = SimpleNamespace(fit=True, alone=lambda: True, in_place={})
    instance: Any = SimpleNamespace(flow_tables=tables)
    growth = FlowGrowth(instance, programs, SimpleNamespace(busy=False), most_flows=450)  # type: ignore[arg-type]
    growth.step(1.0)
    assert told == ["begin 4 150"]  # 450 flows are 150 buckets; the other was larger before
