"""The programs: loaded while something else is done, since the kernel takes a second to check them
and needs no interpreter for that; then put in place."""

import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from ebpf import programs
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.programs import Generation
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.sockets import SocketHooks


class LaterGeneration:
    """`programs.load_generation` in a thread of its own. `close` once."""

    def __init__(self, bundle: Bundle, instance: Instance) -> None:
        """Every map of `instance` must have been opened."""
        self._bundle = bundle
        self._instance = instance
        self._pool = ThreadPoolExecutor(1, "load")
        self._loading = self._pool.submit(programs.load_generation, bundle, instance)

    def result(self) -> Generation:
        """The programs, once they are loaded. Raises LbError if the kernel refused one."""
        return self._loading.result()

    def due(self) -> float | None:
        """At once, if it is already known that there will be no programs."""
        return 0.0 if self._loading.done() and self._loading.exception() else None

    def step(self, now: float) -> None:
        """Raises LbError: without programs there is nothing to go on for."""
        self._loading.result()

    def attach(self, interfaces: Interfaces, sockets: SocketHooks) -> None:
        """Put them on interfaces and sockets, and let go of an earlier agent's. Waits for them."""
        began = time.monotonic()
        generation = self.result()
        interfaces.attach_all(generation)
        sockets.attach(generation)
        self._instance.finish()
        programs.drop_other_generations(self._bundle, self._instance)
        structlog.get_logger().info(
            "programs in place",
            interfaces=interfaces.attached,
            milliseconds=round((time.monotonic() - began) * 1000, 1),
        )

    def close(self) -> None:
        """Let go of the programs; what is pinned or linked lives on. Waits for the kernel."""
        self._pool.shutdown()
        if self._loading.exception() is None:
            self._loading.result().close()
