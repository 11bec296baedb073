"""What a run of the benchmark is asked for, and the measures there are."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lbctl.bench.measures import CONNECTION_MEASURES, Effort
from lbctl.bench.records import PEERS
from lbctl.bench.saved import Saved

PER_SERVICES = (
    *CONNECTION_MEASURES,
    "roundtrip_64k",
    "request_rate",
    "throughput",
    "load_time",
    "change_time",
    "agent_memory",
    "kernel_memory",
)
PACKETS = ("packet_ns", "packet_instructions")
RATE = "packet_rate"


class Options(msgspec.Struct, frozen=True):
    """What a run is asked for. `cpu`: where the generator stays, -1 for anywhere.
    `min_sync_period`: seconds that kube-proxy leaves between two syncs; its own default is one."""

    services: tuple[int, ...] = (1, 100, 1000, 10000)
    endpoints: int = 3
    targets: int = 16
    peers: tuple[str, ...] = PEERS
    measures: tuple[str, ...] = (*PER_SERVICES, *PACKETS, RATE)
    effort: Effort = Effort()
    timeout: float = 300.0
    cpu: int = -1
    name: str = "bench"
    saved: Saved | None = None
    kube_proxy: Path | None = None
    min_sync_period: float = 1.0

    def measures_at(self, services: int) -> list[str]:
        """Those asked for of that number of services; many flows are the same with any that have
        enough destinations."""
        enough = [count for count in self.services if count >= self.targets]
        at = min(enough, default=max(self.services))
        once = ("roundtrip_64k",) if services != at else ()
        return [m for m in PER_SERVICES if m in self.measures and m not in once]
