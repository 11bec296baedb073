"""Is kube-proxy still here? While its rules are, TCP without a flow may be its connection."""

from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from lbctl.host import leftovers

MODES = ("auto", "on", "off")
CHECK_SECONDS = 60.0


def kube_proxy_rules() -> bool:
    """Whether kube-proxy's chains exist in this network namespace."""
    return leftovers.in_use(_cannot_look)


def _cannot_look(error: Exception) -> None:
    structlog.get_logger().debug("cannot look for kube-proxy's rules", error=str(error))


class Watcher:
    """Answers `present`, and asks again in the background."""

    def __init__(self, mode: str) -> None:
        """`mode` is one of MODES; "on" and "off" are answers by themselves."""
        self.present = mode == "on" or (mode == "auto" and kube_proxy_rules())
        self._auto = mode == "auto"
        self._pool: ThreadPoolExecutor | None = None
        self._asked: Future[bool] | None = None
        self._next = 0.0

    def due(self) -> float | None:
        """When `poll` has something to do, on the monotonic clock. An answer wakes nobody."""
        if not self._auto:
            return None
        if self._asked:
            return 0.0 if self._asked.done() else None
        return self._next

    def poll(self, now: float) -> bool:
        """Collect an answer, ask anew when it is time. Returns whether `present` changed."""
        if not self._auto:
            return False
        before = self.present
        if self._asked and self._asked.done():
            self.present = self._asked.result()
            self._asked = None
        if self._asked is None and now >= self._next:
            if self._next:  # the first answer came with the start
                self._pool = self._pool or ThreadPoolExecutor(1, "takeover")
                self._asked = self._pool.submit(kube_proxy_rules)
            self._next = now + CHECK_SECONDS
        return self.present != before

    def stop(self) -> None:
        """Let go of the thread; an answer under way is not waited for."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
