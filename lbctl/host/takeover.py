"""Is kube-proxy still here? While its rules are, TCP without a flow may be its connection."""

import structlog

from lbctl.errands import Errand
from lbctl.host import leftovers

CHECK_SECONDS = 60.0
ASKING_SECONDS = 120.0  # iptables waits for others' locks


def kube_proxy_rules() -> bool:
    """Whether kube-proxy's chains exist in this network namespace."""
    return leftovers.in_use(_cannot_look)


def _cannot_look(error: Exception) -> None:
    structlog.get_logger().debug("cannot look for kube-proxy's rules", error=str(error))


class Watcher:
    """Answers `present`, and asks again in the background."""

    def __init__(self, mode: str, errand: Errand | None = None) -> None:
        """`mode` is "auto", or "on" or "off", which are answers by themselves. `errand` is who
        asks, in ASKING_SECONDS at most."""
        self.present = mode == "on" or (mode == "auto" and kube_proxy_rules())
        self._auto = mode == "auto"
        self._errand = errand or Errand("kube-proxy's rules", ASKING_SECONDS)
        self._answer: bool | None = None
        self._next = 0.0

    def due(self) -> float | None:
        """When `poll` has something to do, on the monotonic clock. An answer wakes nobody."""
        if not self._auto:
            return None
        return self._next if self._answer is None else 0.0

    def poll(self, now: float) -> bool:
        """Collect an answer, ask anew when it is time. Returns whether `present` changed."""
        if not self._auto:
            return False
        before = self.present
        answer, self._answer = self._answer, None
        if answer is not None:
            self.present = answer
        if now >= self._next:
            if self._next:  # the first answer came with the start
                self._errand.send(self._ask)
            self._next = now + CHECK_SECONDS
        return self.present != before

    def _ask(self) -> None:
        answer = kube_proxy_rules()
        # One who was given up as stuck may come back with an answer of long ago: the next, in a
        # minute, puts it right.
        self._answer = answer
