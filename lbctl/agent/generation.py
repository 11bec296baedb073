"""Programs that are loaded while something else is done: the kernel takes a second to check them,
and needs no interpreter for that."""

from concurrent.futures import ThreadPoolExecutor

from ebpf import programs
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.programs import Generation


class LaterGeneration:
    """`programs.load_generation` in a thread of its own. `close` once."""

    def __init__(self, bundle: Bundle, instance: Instance) -> None:
        """Every map of `instance` must have been opened."""
        self._pool = ThreadPoolExecutor(1, "load")
        self._loading = self._pool.submit(programs.load_generation, bundle, instance)

    def result(self) -> Generation:
        """The programs, once they are loaded. Raises LbError if the kernel refused one."""
        return self._loading.result()

    def check(self) -> None:
        """Raises LbError if it is already known that there will be no programs."""
        if self._loading.done():
            self._loading.result()

    def close(self) -> None:
        """Let go of the programs; what is pinned or linked lives on. Waits for the kernel."""
        self._pool.shutdown()
        if self._loading.exception() is None:
            self._loading.result().close()
