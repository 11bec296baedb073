"""Maps made for a question: unpinned, small, filled by the agent's own reconciler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ebpf import maps
from ebpf.layouts import Bundle
from ebpf.maps import ArrayMap, HashMap, Map, PerCpuArray, declared
from ebpf.maps.declared import Maps
from ebpf.maps.sizes import Sizes
from lbctl.errors import LbError
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.model.updates import SourceStatus, Update
from lbctl.program import config
from lbctl.program.config import DataPathSettings
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import resolve
from lbctl.trace import programs
from lbctl.trace.flows import Arrival, Flow
from lbctl.trace.tracednode import TracedNode

_SPARE = 4  # times what is there now, since what leaves rests for a while before its reuse
_SMALL = 16  # entries of the flow tables, which stay empty


class PrivateMaps(Maps[HashMap, ArrayMap, PerCpuArray]):
    """Unpinned maps of a bundle, as attributes by name like those of an instance."""

    def __init__(self, bundle: Bundle, sizes: Sizes) -> None:
        """Maps for `sizes`; what only programs fill stays empty, and is tiny. Raises KernelError,
        LayoutError."""
        self._all: dict[str, Map] = {}
        try:
            for name, entries in sizes.max_entries(bundle).items():
                room = _SMALL if declared.USES[name].filled else entries
                self._all[name] = maps.create(bundle.maps[name], room)
        except LbError:
            self.close()
            raise

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Map:
            if name.startswith("_") or name not in self._all:
                raise AttributeError(name)
            return self._all[name]

    def fds(self) -> dict[str, int]:
        return {name: opened.fd for name, opened in self._all.items()}

    def close(self) -> None:
        for opened in self._all.values():
            opened.close()


class PrivateNode(TracedNode):
    """A node that exists only here.

    `apply` may be called again: then only the difference is written, as the agent does it.
    """

    def __init__(self, bundle: Bundle, sizes: Sizes, node: NodeFacts) -> None:
        """Maps for `sizes`; flow tables are tiny. Raises KernelError."""
        self.maps = PrivateMaps(bundle, sizes)
        try:
            generation = programs.load(bundle, self.maps.fds())
        except LbError:
            self.maps.close()
            raise
        super().__init__(generation, self.maps.names, bundle)
        self._node = node
        self._reconciler = Reconciler(self.maps, node)
        self._known: set[ObjectKey] = set()

    def apply(self, services: Iterable[ServiceObjects], node: NodeFacts) -> None:
        """Makes the maps say what `services`, which are all there are, mean to `node`.

        What the agent would log is logged. Raises LbError for what does not fit, ConfigError for
        too many service ranges.
        """
        settings = DataPathSettings(pass_midstream=False)
        config.store(self.maps.config, node, settings)
        self._node = node
        wanted = {s.service.key: s for s in services if s.service is not None}
        gone = dict.fromkeys(self._known - wanted.keys(), ServiceObjects(None))
        self._known = set(wanted)
        self._reconciler.set_node(node)
        self._reconciler.take(
            Update({**gone, **wanted}, None, False, True, True, SourceStatus(synced=True))
        )
        self._reconciler.apply(complete=True)
        if self._reconciler.waiting or self._reconciler.refused:
            raise LbError("not everything fits: " + " ".join(self._reconciler.warnings()))

    def origin(self, flow: Flow) -> Arrival:
        """Where the flow enters, unless it says so: by its source, as the node sees it."""
        if flow.source in self._node.addresses:
            return "node"
        inside = any(flow.source in prefix for prefix in self._node.cluster_cidrs)
        return "pod" if inside else "uplink"

    def warnings(self) -> list[str]:
        """Sentences about the objects as they are now."""
        return self._reconciler.warnings()

    def close(self) -> None:
        super().close()
        self.maps.close()


def sizes_for(services: Iterable[ServiceObjects], node: NodeFacts) -> Sizes:
    """Room for these services and for changes to them."""
    ports = [
        port
        for objects in services
        if objects.service is not None
        for port in resolve(objects.service, objects.slices, node)
    ]
    return Sizes(
        services=64 + _SPARE * sum(max(1, len(port.frontends)) for port in ports),
        endpoints=256 + _SPARE * sum(len(p.cluster) + len(p.local) for p in ports),
        flows=_SMALL,
    )
