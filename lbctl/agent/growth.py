"""Tables grow while traffic runs: which, when, and in which steps.

Larger maps are made beside those in use, and programs are loaded on them, in a thread
(lbctl/agent/generation.py). Then the larger ones take over what the others hold, the programs are
put in place, and the others are let go; flows move meanwhile, some at a time. Killed at any point,
the next agent finds complete maps, and goes on.
"""

import math
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from ebpf.errors import LbError
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.maps import declared
from ebpf.maps.declared import Limit
from ebpf.maps.sizes import Sizes
from lbctl import advice
from lbctl.agent.flowgrowth import FlowGrowth
from lbctl.agent.generation import LaterGeneration
from lbctl.agent.learned import Learned
from lbctl.plan.rooms import Need
from lbctl.reconcile.growing import Growing, Room
from lbctl.reconcile.reconciler import Reconciler

LOOK_SECONDS: Final = 1.0
STEP_SECONDS: Final = 0.05  # between the steps of a table of flows: connections may be waiting
_REST_SECONDS: Final = 60.0  # after a failure: there is no memory, say
# Entries of a map for each service port or endpoint, as ebpf/maps/declared.py has them.
_FRONTENDS: Final = 5
_BACKENDS: Final = 2
_SLOTS: Final = 4
_PLACES: Final = 4  # of tables by hash, two to an entry
# These are large, and are filled evenly: that is for both the old and the new of every change.
_FULL: Final = 0.75
_STEP: Final = 1.5


class Growth:
    """Looks once a second how full tables are, and takes what grows a step further as soon as it
    can be."""

    def __init__(
        self,
        bundle: Bundle,
        instance: Instance,
        programs: LaterGeneration,
        reconciler: Reconciler,
        flows: FlowGrowth,
        learned: Learned,
        most: Sizes,
    ) -> None:
        """`most` bounds all of them."""
        self._bundle = bundle
        self._instance = instance
        self._programs = programs
        self._reconciler = reconciler
        self._flows = flows
        self._learned = learned
        self._most = most
        self._growing: dict[Limit, Growing] = {
            limit: Growing(_FULL, _STEP) for limit in declared.LIMITS
        }
        self._asked = False  # for programs on other maps
        self.problem = ""  # why tables do not grow though they should
        self._next = 0.0
        self._log = structlog.get_logger()

    def fit(self) -> None:
        """Make room for all objects that are known, while no program is in place."""
        there = self._there()
        expected, places = self._reconciler.known.expected(), self._reconciler.expected_places()
        # An earlier agent programmed most of them, if there was one.
        more = expected.minus(expected.common(self._taken()))
        wanted = _wanted(self._growing, self._rooms(there, more, places), 0.0)
        if wanted != there:
            self._instance.enlarge(self._entries(wanted))
            self._instance.switch()
            self._instance.finish()
            self._reconciler.grown()

    def due(self) -> float | None:
        """When `step` looks again."""
        return self._next

    def step(self, now: float) -> None:
        """Look, and begin to grow what is about to be full. All that changes at once costs one
        generation of programs."""
        self._next = now + (STEP_SECONDS if self._flows.under_way else LOOK_SECONDS)
        if not self._programs.settled or self._flows.busy:
            return
        if self._asked and not self._programs.fit:  # the log says why the kernel did not take them
            self._asked = False
            self._fail("the kernel does not take programs for larger tables; the log says why", now)
            return
        self._asked = False
        try:
            self._flows.step(now)
            self._grow(now)
            self.problem = ""
        except LbError as error:
            self._log.error("tables do not grow", error=error.message, hint=advice.on(error))
            self._fail(error.message, now)
            return
        if self._flows.under_way:
            self._next = now + STEP_SECONDS
        if not self._programs.fit:
            self._asked = self._programs.reload()

    def _fail(self, why: str, now: float) -> None:
        self._next = now + _REST_SECONDS
        self._instance.enlarge({})
        waiting = self._reconciler.waiting_for().services
        self.problem = f"tables do not grow: {why}"
        if waiting:
            self.problem += f"; {waiting:,} service ports wait for room"

    def _grow(self, now: float) -> None:
        """What is written by the agent."""
        there = self._there()
        wanted = _wanted(self._growing, self._rooms(there, self._reconciler.waiting_for()), now)
        entries = dict(self._learned.wanted())
        if wanted != there:
            entries |= self._entries(wanted)
        if entries:
            self._instance.enlarge(entries)
            self._log.info("tables grow", entries=entries)

    def _there(self) -> dict[Limit, int]:
        """For how many of each there is room."""
        instance = self._instance
        return {
            "services": instance.services.max_entries,
            "endpoints": instance.backends.max_entries // _BACKENDS,
        }

    def _taken(self) -> Need:
        """Entries that are not free. Source ranges do not grow with services or endpoints."""
        planner = self._reconciler.planner
        return Need(
            planner.service_ids.taken,
            len(planner.claims),
            planner.regions.taken,
            planner.backend_ids.taken,
            0,
        )

    def _rooms(self, there: Mapping[Limit, int], more: Need, places: int = 0) -> dict[Limit, Room]:
        """With `more` than is there, and at least so many `places` of tables by hash."""
        all_ = self._taken().plus(more)
        used: dict[Limit, tuple[float, ...]] = {
            "services": (all_.services, all_.frontends / _FRONTENDS),
            "endpoints": (
                all_.backends / _BACKENDS,
                all_.slots / _SLOTS,
                max(self._reconciler.planner.table_places, places) / _PLACES,
            ),
        }
        return {
            name: Room(math.ceil(max(numbers)), there[name], getattr(self._most, name))
            for name, numbers in used.items()
        }

    def _entries(self, wanted: Mapping[Limit, int]) -> dict[str, int]:
        """All maps that follow services or endpoints: each is written to while the former one is
        in use, and they are of one kind only together."""
        sizes = msgspec.structs.replace(
            self._most, services=wanted["services"], endpoints=wanted["endpoints"]
        ).max_entries(self._bundle)
        return {
            name: max(number, self._instance.map(name).max_entries)
            for name, number in sizes.items()
            if declared.limits_of(name) & wanted.keys()
        }


def _wanted(
    growing: Mapping[Limit, Growing], rooms: Mapping[Limit, Room], now: float
) -> dict[Limit, int]:
    return {name: growing[name].wanted(room, now) for name, room in rooms.items()}
