"""How many entries each map gets, from three numbers a person can choose."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ebpf.errors import LayoutError
from ebpf.layouts import PROG_ARRAY, Bundle
from ebpf.maps import buckets, declared
from ebpf.maps.declared import Constant, Fixed, Share, Table

_SERVICES = 65536
_ENDPOINTS = 262144
_FLOWS = 131072
_GIB = 1 << 30


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
        return 550 * self.services + 130 * self.endpoints + 890 * self.flows + 6_400_000

    def max_entries(self, bundle: Bundle) -> dict[str, int]:
        """Entries by map, for every map of `bundle` but the program array.

        Raises LayoutError for a map that `declared.Maps` does not know.
        """
        return {
            name: self._entries(name, declared.use_of(spec).size, bundle.enums)
            for name, spec in bundle.maps.items()
            if spec.type != PROG_ARRAY
        }

    def _entries(self, name: str, size: declared.Size, enums: Mapping[str, int]) -> int:
        match size:
            case Share():
                return self._chosen(size)
            case Table(shares):
                return buckets.elements_for(sum(map(self._chosen, shares)))
            case Fixed(entries):
                return entries
            case Constant(constant) if constant not in enums:
                raise LayoutError(f"map {name} is sized by {constant}, which consts.h lacks")
            case Constant(constant):
                return enums[constant]

    def _chosen(self, share: Share) -> int:
        chosen: int = getattr(self, share.limit)
        return share.times * chosen


def memory_of_machine() -> int:
    """Bytes of main memory."""
    with open("/proc/meminfo") as stream:
        for line in stream:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0
