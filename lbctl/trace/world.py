"""Where flows are asked: maps with programs on them, made for the question or a node's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from ebpf import maps
from ebpf.instance import Instance
from ebpf.layouts import Bundle, MapSpec
from ebpf.maps import ArrayMap, HashMap, Map
from ebpf.programs import Generation
from ebpf.sizes import Sizes
from lbctl import consts, program, programmed
from lbctl.addresses import IPV4, IPV6, Prefix, of_family
from lbctl.errors import ConfigError, LbError
from lbctl.model import ServiceObjects
from lbctl.node import NodeFacts
from lbctl.resolve import ResolvedPort, resolve
from lbctl.trace import asking, programs
from lbctl.trace.asking import Traced
from lbctl.trace.flows import Flow

_SPARE = 4  # times what is there now, since what leaves rests for a while before its reuse
_SMALL = 16  # entries of the flow tables, which stay empty


class World:
    """Programs on maps, ready to be asked. Close it, or use it as a context manager."""

    def __init__(self, generation: Generation, names: HashMap, bundle: Bundle) -> None:
        self._generation = generation
        self._names = names
        self._reasons = asking.reason_names(bundle.enums)

    def ask(self, flows: Iterable[Flow], samples: int) -> list[Traced]:
        """An answer per flow, in their order, from `samples` packets each. Raises KernelError."""
        entry = self._generation.fds[programs.ENTRY]
        return [asking.ask(f, entry, samples, self._reasons, self._name_of) for f in flows]

    def close(self) -> None:
        """Lets go of programs and descriptors; pinned maps stay."""
        self._generation.close()

    def _name_of(self, service: int) -> str:
        spec = self._names.spec
        found = self._names.get(spec.key.pack(service=service))
        text: bytes = spec.value.unpack(found)["text"] if found else b""
        return text.decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LiveWorld(World):
    """A node's own maps. Takes `instance` over; nothing in it changes.

    Raises LayoutError if its maps are of another version of lbctl.
    """

    def __init__(self, instance: Instance, bundle: Bundle) -> None:
        self._instance = instance
        with contextlib.ExitStack() as undo:
            undo.callback(instance.close)
            instance.require(bundle)
            fds = {name: instance.map(name).fd for name in programs.maps_of(bundle)}
            super().__init__(programs.load(bundle, fds), instance.names, bundle)
            undo.pop_all()

    def close(self) -> None:
        super().close()
        self._instance.close()


class _Maps:
    """Unpinned maps of a bundle, as attributes by name like those of an instance."""

    frontends: HashMap
    names: HashMap
    services: ArrayMap
    slots: ArrayMap
    backends: ArrayMap
    service_filter: ArrayMap
    backend_filter: ArrayMap
    service_counters: ArrayMap
    config: ArrayMap
    table_state: ArrayMap
    flows4: HashMap
    flows4_lru: HashMap
    flows6: HashMap
    flows6_lru: HashMap

    def __init__(self, specs: Iterable[MapSpec], entries: Mapping[str, int]) -> None:
        self._all: dict[str, Map] = {}
        try:
            for spec in specs:
                self._all[spec.name] = maps.create(spec, entries.get(spec.name, _SMALL))
        except LbError:
            self.close()
            raise

    def __getattr__(self, name: str) -> Map:
        if name.startswith("_") or name not in self._all:
            raise AttributeError(name)
        return self._all[name]

    def fds(self) -> dict[str, int]:
        return {name: opened.fd for name, opened in self._all.items()}

    def all(self) -> list[Map]:
        return list(self._all.values())

    def close(self) -> None:
        for opened in self._all.values():
            opened.close()


class PrivateWorld(World):
    """Maps of its own, filled by the agent's planner and writer from given objects.

    `apply` may be called again: then only the difference is written, as the agent does it.
    """

    def __init__(self, bundle: Bundle, sizes: Sizes) -> None:
        """Maps for `sizes`; flow tables are tiny. Raises KernelError."""
        entries = sizes.max_entries(bundle.enums)
        entries.update(_fixed(bundle))
        self.maps = _Maps((bundle.maps[name] for name in programs.maps_of(bundle)), entries)
        try:
            generation = programs.load(bundle, self.maps.fds())
        except LbError:
            self.maps.close()
            raise
        super().__init__(generation, self.maps.names, bundle)
        self._planner, _ = programmed.read(self.maps, now=0.0)
        self._ports: set[str] = set()
        self._clock = 0.0

    def apply(self, services: Iterable[ServiceObjects], node: NodeFacts) -> list[str]:
        """Makes the maps say what `services` are to `node`. Returns warnings, deduplicated.

        Raises LbError for what does not fit, ConfigError for too many service ranges.
        """
        self._clock += 1.0
        wanted = resolved_ports(services, node)
        changes: dict[str, ResolvedPort | None] = dict.fromkeys(self._ports - wanted.keys())
        changes.update(wanted)
        configure(self.maps.config, node)
        plan = self._planner.plan(changes, self._clock)
        for error in plan.failed.values():
            raise error
        program.apply(plan, self.maps)
        self._ports = set(wanted)
        said = [w for port in wanted.values() for w in port.warnings]
        return list(dict.fromkeys([*said, *plan.warnings]))

    def close(self) -> None:
        super().close()
        self.maps.close()


class _ConfigTable(Protocol):
    records: maps.Records


def resolved_ports(services: Iterable[ServiceObjects], node: NodeFacts) -> dict[str, ResolvedPort]:
    """Every port of every service by its name, in the order of the services."""
    return {
        port.name: port
        for objects in services
        if objects.service is not None
        for port in resolve(objects.service, objects.slices, node)
    }


def sizes_for(services: Iterable[ServiceObjects], node: NodeFacts) -> Sizes:
    """Room for these services and for changes to them."""
    ports = resolved_ports(services, node).values()
    return Sizes(
        services=64 + _SPARE * sum(max(1, len(port.frontends)) for port in ports),
        endpoints=256 + _SPARE * sum(len(p.cluster) + len(p.local) for p in ports),
        flows=_SMALL,
    )


def configure(table: _ConfigTable, node: NodeFacts) -> None:
    """Writes service ranges and node addresses. Raises ConfigError for more ranges than fit."""
    record = table.records[0]
    for family in (IPV4, IPV6):
        primary = node.primary(family)
        _store(record[f"node{family}"]["w"], primary or bytes(16))
        ranges = of_family(node.service_cidrs, family)
        if len(ranges) > consts.MAX_SERVICE_CIDRS:
            raise ConfigError(
                f"--service-cidr is given {len(ranges)} times for IPv{family}",
                f"The programs know up to {consts.MAX_SERVICE_CIDRS} ranges per family.",
            )
        for index, prefix in enumerate(ranges):
            _store(record[f"cidr{family}"][index]["net"]["w"], prefix.address)
            _store(record[f"cidr{family}"][index]["mask"]["w"], _mask(prefix))
        record[f"cidr_count{family}"] = len(ranges)


def _store(words: maps.Records, address: bytes) -> None:
    """A struct addr holds the address's bytes as they are."""
    words[:] = np.frombuffer(address, words.dtype)


def _mask(prefix: Prefix) -> bytes:
    return ((1 << 128) - (1 << (128 - prefix.length))).to_bytes(16, "big")


def _fixed(bundle: Bundle) -> dict[str, int]:
    return {name: _SMALL for name in bundle.maps if name.startswith(("flows", "fragments"))}
