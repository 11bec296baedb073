"""Is kube-proxy still here? While its rules are, TCP without a flow may be its connection."""

import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from lbctl.host import leftovers

MODES = ("auto", "on", "off")
CHECK_SECONDS = 60.0

_BOUND = 20  # seconds for a listing of many thousand chains
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")


def kube_proxy_rules() -> bool:
    """Whether kube-proxy's chains exist in this network namespace, in any of its modes.

    nft shows the chains of nftables and of iptables-nft. The legacy iptables is asked only where
    its nat table is in use already: asking would create it. Chains of the kubelet, which have the
    same prefix and stay for ever, do not count.
    """
    chains = _output("nft", "list", "chains")
    if chains is None:
        chains = _output("iptables-nft-save", "-t", "nat") or ""
    if leftovers.translates(chains):
        return True
    if not _legacy_nat():
        return False
    return leftovers.translates(_output("iptables-legacy-save", "-t", "nat") or "")


class Watcher:
    """Answers `present`, and asks again in the background."""

    def __init__(self, mode: str) -> None:
        """`mode` is one of MODES; "on" and "off" are answers by themselves."""
        self.present = mode == "on" or (mode == "auto" and kube_proxy_rules())
        self._auto = mode == "auto"
        self._pool: ThreadPoolExecutor | None = None
        self._asked: Future[bool] | None = None
        self._next = 0.0

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


def _legacy_nat() -> bool:
    try:
        return "nat" in _LEGACY_TABLES.read_text().split()
    except OSError:
        return False


def _output(*command: str) -> str | None:
    """What it prints; None if there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BOUND, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        structlog.get_logger().debug("cannot look for kube-proxy's rules", error=str(error))
        return None
    return done.stdout if done.returncode == 0 else None
