"""How many entries each map gets, from three numbers a person can choose."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ebpf.errors import LayoutError
from ebpf.layouts import PROG_ARRAY, Bundle
from ebpf.maps import buckets, declared
from ebpf.maps.arrays import possible_cpus
from ebpf.maps.declared import Buckets, Constant, Cpus, Fixed, Learned, Power, Share, Table

# Bounds for any machine: beyond, ids and lists cost the agent more than the maps cost the kernel.
_SERVICES = 131072
_ENDPOINTS = 524288
_FLOWS = 1048576
_LEAST_SERVICES = 4096
_LEAST_FLOWS = 8192
# What an instance begins with; it grows as it is used.
_FIRST = (1024, 4096, 8192)
_LEARNED = 4096
# A share of the machine's memory for flows; 4 GiB give room for 65,536 services.
_FLOWS_SHARE = 32
_MEMORY_OF_SERVICE = 65536
# Of kernel memory, on x86-64 (Linux 6.18).
_SERVICE_BYTES = 560
_ENDPOINT_BYTES = 165
_FLOW_BYTES = 530
_SOCKETS_BYTES = 15_000_000
_FIXED_BYTES = 2_000_000


class Sizes(msgspec.Struct, frozen=True):
    """`services` are service ports, `endpoints` are (service port, endpoint) pairs in use at once,
    `flows` are connections per family. Without `sockets` there is nothing for socket hooks, without
    `fast_path` nothing for what goes past the stack."""

    services: int = _SERVICES
    endpoints: int = _ENDPOINTS
    flows: int = _FLOWS
    sockets: bool = True
    fast_path: bool = False

    @classmethod
    def automatic(cls, memory_bytes: int) -> Sizes:
        """How large maps may become on a machine, by powers of two."""
        services = _power_below(memory_bytes // _MEMORY_OF_SERVICE)
        services = min(max(services, _LEAST_SERVICES), _SERVICES)
        flows = _power_below(memory_bytes // _FLOWS_SHARE // _FLOW_BYTES)
        return cls(services, 4 * services, min(max(flows, _LEAST_FLOWS), _FLOWS))

    @classmethod
    def automatic_here(cls) -> Sizes:
        """Those for this machine's memory."""
        return cls.automatic(memory_of_machine())

    def at_first(self, flows_there: int = 0) -> Sizes:
        """What an instance begins with that may become so large, and has so many flows already."""
        services, endpoints, flows = _FIRST
        flows = max(flows, 2 * _power_below(2 * flows_there))
        return msgspec.structs.replace(
            self,
            services=min(services, self.services),
            endpoints=min(endpoints, self.endpoints),
            flows=min(flows, self.flows),
        )

    def estimated_bytes(self) -> int:
        """Kernel memory of all maps when all that is used."""
        return (
            _SERVICE_BYTES * self.services
            + _ENDPOINT_BYTES * self.endpoints
            + _FLOW_BYTES * self.flows
            + _SOCKETS_BYTES * self.sockets
            + _FIXED_BYTES
        )

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
            case Fixed(entries, part):
                return entries if self._uses(part) else 1
            case Learned(most, part):
                if not part:
                    return min(_LEARNED, most, self.flows)
                return min(_LEARNED, most) if self._uses(part) else 1
            case Cpus():
                return possible_cpus()
            case Buckets(first, each):
                return each * (buckets_for(self.flows) if first else 1)
            case Constant(constant) | Power(constant, _) if constant not in enums:
                raise LayoutError(f"map {name} is sized by {constant}, which consts.h lacks")
            case Constant(constant):
                return enums[constant]
            case Power(constant, part):
                return 1 << enums[constant] if self._uses(part) else 1

    def _uses(self, part: declared.Part) -> bool:
        return not part or bool(getattr(self, part))

    def _chosen(self, share: Share) -> int:
        chosen: int = getattr(self, share.limit)
        return share.times * chosen


def buckets_for(flows: int) -> int:
    """Buckets of eight cells, for flows of two: three quarters full, every tuple finds a place."""
    return max(1, -(-flows // 3))


def _power_below(number: int) -> int:
    """The largest power of two that is not above `number`; 0 for 0."""
    return 1 << number.bit_length() - 1 if number else 0


def memory_of_machine() -> int:
    """Bytes of main memory."""
    with open("/proc/meminfo") as stream:
        for line in stream:
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0
