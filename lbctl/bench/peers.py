"""The peers of a run: how each gets its services, changes an endpoint, and what memory it takes."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from lbctl.bench import iptables_rules, nftables_rules
from lbctl.bench.dataset import Dataset
from lbctl.bench.saved import Saved
from lbctl.bench.testbed import Testbed
from lbctl.errors import LbError

NOT_YET = "not in this version"
PART = 1000  # services per file where one file is too much


class NotFinished(LbError):
    """A peer took longer than --timeout to load."""


class LoadedOtherwise(LbError):
    """A peer is loaded, but not in the way whose time is the load time."""


class Peer(Protocol):
    """One way to reach a service. All times are seconds, memory is in bytes."""

    name: str
    saved: bool  # it runs an operator's saved rules
    runs_agent: bool  # a process of it has memory of its own

    def unavailable(self) -> str:
        """Why it cannot run on this machine; empty if it can."""

    def load(self, testbed: Testbed, data: Dataset, timeout: float) -> float | None:
        """Program everything; how long that took, None where there is nothing to do. Raises
        NotFinished, LoadedOtherwise, LbError."""

    def change(self, old: Sequence[str], new: Sequence[str]) -> None:
        """Replace the endpoints of the changing service; returns when there is nothing left to do
        for the caller. Raises LbError."""

    def kernel_memory(self) -> int | None: ...

    def agent_memory(self) -> int | None: ...

    def stop(self) -> None:
        """End its processes, if it has any."""


class Bare:
    """A node that only routes: the floor."""

    name = "none"
    saved = False
    runs_agent = False

    def unavailable(self) -> str:
        return ""

    def load(self, testbed: Testbed, data: Dataset, timeout: float) -> float | None:
        return None

    def change(self, old: Sequence[str], new: Sequence[str]) -> None:
        raise LbError("a node without rules has no endpoints to change")

    def kernel_memory(self) -> int | None:
        return None

    def agent_memory(self) -> int | None:
        return None

    def stop(self) -> None:
        pass


class Unavailable(Bare):
    """A peer that cannot run here, with the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def unavailable(self) -> str:
        return self._reason


class Rules:
    """Rules of kube-proxy's shape, given to the tool that loads them.

    No agent runs: what kube-proxy itself takes to find out what changed is not in the figures,
    which favours these peers. `--kube-proxy` runs the real one instead.
    """

    runs_agent = False

    def __init__(self, name: str, argv: Sequence[str], saved: Path | None = None) -> None:
        self.name = name
        self._argv = list(argv)
        self._file = saved
        self.saved = saved is not None
        self._shape = nftables_rules if name == "nftables" else iptables_rules
        self._testbed: Testbed | None = None
        self._data: Dataset | None = None
        self._timeout = 0.0
        self._before = 0

    def unavailable(self) -> str:
        if shutil.which(self._argv[0]) is None:
            package = "nftables" if self.name == "nftables" else "iptables"
            return f"{self._argv[0]} is not installed (package {package})"
        return ""

    def load(self, testbed: Testbed, data: Dataset, timeout: float) -> float | None:
        self._testbed, self._data, self._timeout = testbed, data, timeout
        text = self._file.read_text() if self._file else self._shape.full(data)
        self._before = testbed.kernel_bytes(self.name) or 0
        try:
            return self._restore(text, timeout)
        except NotFinished:
            if self.name != "iptables-nft" or self.saved:
                raise
        return self._load_in_parts(testbed, data, timeout)

    def _load_in_parts(self, testbed: Testbed, data: Dataset, timeout: float) -> float:
        """iptables-nft takes more than the square of the number of rules for one file: in parts it
        gets there. kube-proxy knows no parts, so that is no load time. Raises NotFinished."""
        start = time.monotonic()
        parts = iptables_rules.parts(data, PART)
        for text in parts:
            left = start + timeout - time.monotonic()
            try:
                self._restore(text, max(left, 1.0))
            except NotFinished:
                raise NotFinished(
                    f"not finished in {timeout:g} s, in one file or in parts of {PART} services"
                ) from None
        took = time.monotonic() - start
        raise LoadedOtherwise(
            f"not finished in {timeout:g} s as one file, which is how kube-proxy writes it; for "
            f"the other measures it was loaded in {len(parts)} parts, in {took:.0f} s"
        )

    def change(self, old: Sequence[str], new: Sequence[str]) -> None:
        if self.saved or self._data is None:
            raise LbError("the rules are a file's: which of them to change is not known")
        self._restore(self._shape.change(self._data, old, new), self._timeout)

    def _restore(self, text: str, timeout: float) -> float:
        assert self._testbed is not None
        start = time.monotonic()
        try:
            done = self._testbed.run_on(self.name, self._argv, text, timeout)
        except subprocess.TimeoutExpired:
            raise NotFinished(f"not finished in {timeout:g} s") from None
        if done.returncode:
            first = done.stderr.strip().splitlines()[:1]
            raise LbError(f"{self._argv[0]}: {''.join(first) or f'exit {done.returncode}'}")
        return time.monotonic() - start

    def kernel_memory(self) -> int | None:
        if self._testbed is None:
            return None
        now = self._testbed.kernel_bytes(self.name)
        return None if now is None else max(0, now - self._before)

    def agent_memory(self) -> int | None:
        return None

    def stop(self) -> None:
        pass


def ipvs_reason() -> str:
    """Why the peer `ipvs` does not run; the rules of that mode are not written here either way."""
    if not Path("/proc/net/ip_vs").exists():
        return "this kernel has no IPVS (no /proc/net/ip_vs; module ip_vs, or CONFIG_IP_VS)"
    return f"{NOT_YET}: the kernel has IPVS, but this harness does not set it up"


def rule_peers(saved: Saved | None) -> list[Peer]:
    """The netfilter peers, without kube-proxy. Saved rules replace the generated ones of those they
    are for: both iptables variants, or nftables."""
    tables = saved.path if saved and saved.kind == "iptables" else None
    ruleset = saved.path if saved and saved.kind == "nftables" else None
    return [
        Rules("iptables-nft", ["iptables-nft-restore", "--noflush"], tables),
        Rules("iptables-legacy", ["iptables-legacy-restore", "--noflush", "--wait", "5"], tables),
        Rules("nftables", ["nft", "-f", "-"], ruleset),
    ]
