"""The programs: loaded while something else is done, since the kernel takes a second to check them
and needs no interpreter for that; then put in place, for which nothing waits either."""

import time

import structlog

from ebpf import programs
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.programs import Generation
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.agent.sockets import SocketHooks

LOADING_SECONDS = 120.0  # a second or two where nothing else is done
_LEAVES = 10.0


class LaterGeneration:
    """`programs.load_generation` in a thread of its own. `close` once.

    Once it is `wanted`, steps follow from each other: loaded, on all interfaces, and then whatever
    an earlier agent left is let go.
    """

    def __init__(
        self,
        bundle: Bundle,
        instance: Instance,
        interfaces: Interfaces,
        sockets: SocketHooks,
        keeper: Keeper,
    ) -> None:
        """Every map of `instance` must have been opened."""
        self._bundle = bundle
        self._instance = instance
        self._interfaces = interfaces
        self._sockets = sockets
        self._generation: Generation | None = None
        self._wanted: float | None = None  # since when
        self._given = False
        self._key = ""
        self.began = time.monotonic()
        self.failure: BaseException | None = None  # then there is nothing to go on for
        self.placed = False  # on interfaces and sockets, where that was possible
        self._errand = keeper.errand("loading programs", LOADING_SECONDS)
        self._errand.send(self._load)

    @property
    def loaded(self) -> bool:
        """Whether the kernel has taken them."""
        return self._generation is not None

    def attach(self) -> None:
        """From now on they are wanted in their places; `placed` says when they are."""
        self._wanted = self._wanted or time.monotonic()

    def due(self) -> float | None:
        """At once, if there is a next step."""
        if self._wanted is None or self.placed or self._generation is None:
            return None
        if not self._given:
            return 0.0
        return 0.0 if self._interfaces.placed is self._generation else None

    def step(self, now: float) -> None:
        """Hand them on, or let go of an earlier agent's."""
        generation = self._generation
        if generation is None or self._wanted is None or self.placed:
            return
        if not self._given:
            self._given = True
            self._sockets.attach(generation)
            self._interfaces.attach_all(generation)
        elif self._interfaces.placed is generation:
            self.placed = True
            self._instance.finish()
            programs.drop_other_generations(self._bundle, self._instance)
            structlog.get_logger().info(
                "programs in place",
                interfaces=self._interfaces.attached,
                milliseconds=round((time.monotonic() - self._wanted) * 1000, 1),
            )

    def restore_pins(self) -> list[str]:
        """Pin what somebody unpinned of the programs; returns where. Raises LbError."""
        if not self.placed or self._generation is None:
            return []
        return programs.restore_pins(self._generation, self._key, self._instance)

    def restore_calls(self) -> list[str]:
        """Put back what somebody took out of the program array; returns which programs."""
        if not self.placed or self._generation is None:
            return []
        return self._generation.restore_array(self._bundle.tail_programs())

    def close(self) -> None:
        """Let go of the programs; what is pinned or linked lives on. Waits for the kernel."""
        if self._errand.join(_LEAVES) and self._generation is not None:
            self._generation.close()

    def _load(self) -> None:
        try:
            self._key = programs.generation_key(self._bundle, self._instance)
            self._generation = programs.load_generation(self._bundle, self._instance)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the agent ends by it
            self.failure = error
