"""Tables of flows grow: when, and from one step of ebpf/growth.py to the next."""

from collections.abc import Mapping
from typing import Final

import structlog

from ebpf import flowtable
from ebpf.growth import Growth as Steps
from ebpf.instance import Instance
from ebpf.maps.sizes import buckets_for
from lbctl.agent.generation import LaterGeneration
from lbctl.errands import Errand
from lbctl.reconcile.growing import Growing, Room

MOVING_SECONDS: Final = 300.0  # a million flows take some
_CELLS: Final = 8  # of a bucket
_LEAST: Final = 2  # cells of a flow
_MOVED_AT_ONCE: Final = 1 << 14


class FlowGrowth:
    """Of both families. Steps are taken while the programs in place are those for the maps as they
    are, and alone."""

    def __init__(
        self, instance: Instance, programs: LaterGeneration, errand: Errand, most_flows: int
    ) -> None:
        """`errand` moves flows, in MOVING_SECONDS at most."""
        self._instance = instance
        self._programs = programs
        self._errand = errand
        self._most = _CELLS * buckets_for(most_flows)
        self._growing = {family: Growing() for family in flowtable.FAMILIES}
        self._refused: dict[str, int] = {}  # flows, as of the last look at a family's table
        self._begun = False
        self._log = structlog.get_logger()

    @property
    def busy(self) -> bool:
        """Whether flows are being moved."""
        return self._errand.busy

    @property
    def under_way(self) -> bool:
        """Whether a table is between two steps."""
        return self._begun

    def step(self, now: float) -> None:
        """Take what grows a step further, and begin where a table is about to be full. Programs
        have to be loaded anew if `LaterGeneration.fit` says so afterwards. Raises LbError."""
        steps = {family: Steps(self._instance, family) for family in flowtable.FAMILIES}
        self._begun = any(growth.step != "begin" for growth in steps.values())
        if not self._programs.fit or (self._begun and not self._programs.alone()):
            return
        moving = [growth for growth in steps.values() if growth.step == "move"]
        if moving and any(growth.left() for growth in moving):
            programs = dict(self._programs.in_place)
            self._errand.send(lambda: _move(moving, programs))
            return
        for family, growth in steps.items():
            match growth.step:
                case "leave":
                    growth.leave()
                case "move":
                    growth.finish()
                    self._log.info("a table of flows has grown", family=family)
                case _:
                    growth.tidy()
                    self._begin(family, growth, now)

    def _begin(self, family: str, growth: Steps, now: float) -> None:
        (table,) = (t for t in self._instance.flow_tables if t.family == family)
        rooms, refused = table.rooms(), table.refused()
        # A table that is full does not tell by itself how many want to come in.
        more = _LEAST * max(0, refused - self._refused.get(family, refused))
        self._refused[family] = refused
        room = Room(rooms.used + more, rooms.cells, max(self._most, rooms.cells))
        cells = self._growing[family].wanted(room, now)
        if cells > rooms.cells:
            growth.begin(cells // _CELLS)
            self._begun = True
            self._log.info("a table of flows grows", family=family, cells=cells)


def _move(moving: list[Steps], programs: Mapping[str, int]) -> None:
    for growth in moving:
        while growth.move(dict(programs), _MOVED_AT_ONCE):
            pass
