"""Tables grow while traffic runs: which, when, and in which steps.

Larger maps are made beside those in use, and programs are loaded on them, in a thread
(lbctl/agent/generation.py). Then the larger ones take over what the others hold, the programs are
put in place, and the others are let go; flows move meanwhile, some at a time. Killed at any point,
the next agent finds complete maps, and goes on.
"""

from typing import Final

import structlog

from ebpf.errors import LbError
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.maps import declared
from ebpf.maps.sizes import Sizes
from lbctl import advice
from lbctl.agent.generation import LaterGeneration
from lbctl.reconcile.growing import Growing, Room
from lbctl.reconcile.reconciler import Reconciler

LOOK_SECONDS: Final = 1.0
_REST_SECONDS: Final = 60.0  # after a failure: there is no memory, say


class Growth:
    """Looks once a second how full tables are."""

    def __init__(
        self,
        bundle: Bundle,
        instance: Instance,
        programs: LaterGeneration,
        reconciler: Reconciler,
        most: Sizes,
    ) -> None:
        """`most` bounds all of them."""
        self._bundle = bundle
        self._instance = instance
        self._programs = programs
        self._reconciler = reconciler
        self._most = most
        self._growing = {limit: Growing() for limit in declared.LIMITS}
        self._next = 0.0
        self._log = structlog.get_logger()

    def due(self) -> float | None:
        """When `step` looks again."""
        return self._next

    def step(self, now: float) -> None:
        """Look, and begin to grow what is about to be full."""
        self._next = now + LOOK_SECONDS
        if not self._programs.settled:
            return
        there = self.sizes()
        rooms = self._rooms(there)
        wanted = Sizes(**{n: self._growing[n].wanted(room, now) for n, room in rooms.items()})
        if wanted == there:
            return
        try:
            self._instance.enlarge(self._entries(wanted, there))
        except LbError as error:
            self._log.error("tables do not grow", error=error.message, hint=advice.on(error))
            self._next = now + _REST_SECONDS
            return
        if self._programs.reload():
            self._log.info("tables grow", sizes=msgspec.to_builtins(wanted))
