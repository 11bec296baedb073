"""How many entries each map gets, from three numbers a person can choose."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

_SERVICES = 65536
_ENDPOINTS = 262144
_FLOWS = 131072
_FRAGMENTS = 8192
_SOCKETS = 65536  # of the node's own processes, with a service as peer
_GIB = 1 << 30

# Which of the three numbers a full map wants raised.
LIMITS = {
    "frontends": "services",
    "services": "services",
    "service_counters": "services",
    "names": "services",
    "slots": "endpoints",
    "backends": "endpoints",
    "flows4": "flows",
    "flows4_lru": "flows",
    "flows6": "flows",
    "flows6_lru": "flows",
}


class Sizes(msgspec.Struct, frozen=True):
    """`services` are service ports, `endpoints` are (service port, endpoint) pairs in use at once,
    `flows` are connections per family and table."""

    services: int = _SERVICES
    endpoints: int = _ENDPOINTS
    flows: int = _FLOWS

    @classmethod
    def automatic(cls, memory_bytes: int) -> Sizes:
        """Defaults for a machine of 4 GiB or more; a smaller one gets its share, by powers of two.

        At the defaults the preallocated tables take about 190 MB of kernel memory.
        """
        share = 1
        while share < 16 and memory_bytes * share < 4 * _GIB:
            share *= 2
        return cls(_SERVICES // share, _ENDPOINTS // share, _FLOWS // share)

    @classmethod
    def automatic_here(cls) -> Sizes:
        """Those for this machine's memory."""
        return cls.automatic(memory_of_machine())

    def estimated_bytes(self) -> int:
        """Kernel memory of all maps: measured per entry on x86-64 (Linux 6.18), plus the fixed."""
        return 800 * self.services + 80 * self.endpoints + 890 * self.flows + 3_000_000

    def max_entries(self, enums: Mapping[str, int]) -> dict[str, int]:
        """Map name to number of entries; `enums` are the constants of consts.h.

        A service port has one id and up to four frontends on average (ClusterIP, node port, load
        balancer and external addresses). Slots and backends have room for the old set and the new
        one at once, slots for a cluster and a local region besides. A flow is two entries.
        """
        sizes = {
            "frontends": 4 * self.services,
            "services": self.services,
            "service_counters": self.services,
            "names": self.services,
            "slots": 4 * self.endpoints,
            "backends": 2 * self.endpoints,
            "service_filter": _words(enums.get("SERVICE_FILTER_BITS", 6)),
            "backend_filter": _words(enums.get("BACKEND_FILTER_BITS", 6)),
            "source_ranges": self.services,
            "affinity": self.flows,
            "socket_choices": _SOCKETS,
            "socket_peers": _SOCKETS,
            "counters": enums.get("REASON_MAX", 1),
            "config": 1,
            "table_state": 1,
            "programs": enums.get("PROGRAM_MAX", 1),
        }
        for family in "46":
            sizes[f"flows{family}"] = 2 * self.flows
            sizes[f"flows{family}_lru"] = self.flows
            sizes[f"fragments{family}"] = _FRAGMENTS
            sizes[f"ended{family}"] = 1
        return sizes


def memory_of_machine() -> int:
    """Bytes of main memory."""
    with open("/proc/meminfo") as stream:
        for line in stream:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def _words(bits: int) -> int:
    """64-bit words of a filter with 2**bits bits."""
    return max(1, (1 << bits) // 64)
