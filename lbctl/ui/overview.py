"""What the page shows: services with endpoints, rates, what is turned away, who talks to what.

A look costs what it costs on this node: the next one waits in proportion, however many pages ask.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from ebpf.instance import Instance
from lbctl import status
from lbctl.datapath.reasons import sentence, verdict
from lbctl.inspect import names, services
from lbctl.inspect.backends import list_backends
from lbctl.inspect.instance import reasons
from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import ServiceRow
from lbctl.observe.places import Places
from lbctl.ui import talk
from lbctl.ui.talk import Edge

LOOK_SECONDS: Final = 1.0
_PATIENCE: Final = 10  # times that a look took, until the next one


class ShownEndpoint(msgspec.Struct, frozen=True):
    """One endpoint of a service port."""

    endpoint: str
    name: str
    node: str
    serving: bool
    here: bool
    flows: int


class ShownService(msgspec.Struct, frozen=True):
    """One service port. Rates are per second, since the look before."""

    id: int
    name: str  # namespace/name:port
    service: str  # namespace/name
    protocol: str
    family: str
    addresses: tuple[str, ...]
    algorithm: str
    live: int
    connections: float
    packets: float
    bytes: float
    endpoints: tuple[ShownEndpoint, ...]


class ShownReason(msgspec.Struct, frozen=True):
    """Packets that went no further, or on untouched."""

    reason: str
    verdict: str
    sentence: str
    total: int
    rate: float


class Overview(msgspec.Struct, frozen=True):
    """One look."""

    node: str
    ready: bool
    warnings: tuple[str, ...]
    time: float  # seconds since the epoch
    seconds: float  # since the look before; 0: there was none, and rates are 0
    services: tuple[ShownService, ...]
    reasons: tuple[ShownReason, ...]
    edges: tuple[Edge, ...]
    problem: str = ""


class Looks:
    """Takes looks at an instance; asked by any thread."""

    def __init__(
        self,
        pin_dir: Path,
        places: Places,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pin_dir = pin_dir
        self._places = places
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: Overview | None = None
        self._at = 0.0
        self._next = 0.0
        self._counted: dict[int, tuple[int, int, int]] = {}
        self._decided: dict[str, int] = {}

    def latest(self) -> Overview:
        """The last look, or a new one if that is old enough. Raises LbError."""
        with self._lock:
            began = self._clock()
            if self._latest is None or began >= self._next:
                self._latest = self._look(began)
                self._next = began + max(LOOK_SECONDS, _PATIENCE * (self._clock() - began))
            return self._latest

    def _look(self, now: float) -> Overview:
        self._places.refresh()
        passed = now - self._at if self._latest is not None else 0.0
        self._at = now
        with open_instance(self._pin_dir) as instance:  # anew: its maps may be larger ones by now
            return self._seen(instance, passed)

    def _seen(self, instance: Instance, passed: float) -> Overview:
        said = status.read(self._pin_dir)
        agent = status.running_agent(self._pin_dir)
        known = names.all_names(instance.names)
        alive = said is not None and status.said_by(said.pid, agent)
        return Overview(
            node=said.node if said else "",
            ready=bool(said and alive and said.ready),
            warnings=said.warnings if said and alive else ("no agent runs here",),
            time=time.time(),
            seconds=passed,
            services=tuple(self._services(instance, passed)),
            reasons=tuple(self._reasons(instance, passed)),
            edges=tuple(
                talk.edges(instance.flow_tables, instance.backends, known.get, self._places)
            ),
            problem=self._places.problem,
        )

    def _services(self, instance: Instance, passed: float) -> list[ShownService]:
        rows = services.list_services(instance, flow_tables=instance.flow_tables)
        endpoints = self._endpoints(instance)
        before, self._counted = self._counted, {row.id: _totals(row) for row in rows}
        return [
            self._service(row, before.get(row.id), passed, tuple(endpoints.get(row.id, ())))
            for row in rows
        ]

    def _endpoints(self, instance: Instance) -> dict[int, list[ShownEndpoint]]:
        """By service id."""
        owners = instance.backends.records["service"]
        found: dict[int, list[ShownEndpoint]] = {}
        for row in list_backends(instance):
            place = self._places.named(row.address)
            shown = ShownEndpoint(
                row.endpoint, place.name, place.node, row.serving, row.here, row.flows
            )
            found.setdefault(int(owners[row.id]), []).append(shown)
        return found

    def _service(
        self,
        row: ServiceRow,
        before: tuple[int, int, int] | None,
        passed: float,
        endpoints: tuple[ShownEndpoint, ...],
    ) -> ShownService:
        now = self._counted[row.id]
        # What is new since then began at 0.
        then = before or (0, 0, 0)
        changes = (
            max(0, a - b) / passed if passed else 0.0 for a, b in zip(now, then, strict=True)
        )
        connections, packets, octets = changes
        return ShownService(
            id=row.id,
            name=row.name.label,
            service=row.name.service_label,
            protocol=row.name.protocol,
            family=row.name.family,
            addresses=tuple(f"{a.endpoint} ({', '.join(a.kinds)})" for a in row.addresses),
            algorithm=row.algorithm,
            live=row.counters.live,
            connections=connections,
            packets=packets,
            bytes=octets,
            endpoints=endpoints,
        )

    def _reasons(self, instance: Instance, passed: float) -> list[ShownReason]:
        decided = reasons(instance)
        before, self._decided = self._decided, decided
        return [
            ShownReason(
                reason=reason,
                verdict=verdict(reason),
                sentence=sentence(reason),
                total=total,
                rate=max(0, total - before.get(reason, 0)) / passed if passed else 0.0,
            )
            for reason, total in decided.items()
            if total and verdict(reason) in ("dropped", "refused")
        ]


def _totals(row: ServiceRow) -> tuple[int, int, int]:
    counted = row.counters
    packets, octets = counted.packets_in + counted.packets_out, counted.bytes_in + counted.bytes_out
    return counted.connections, packets, octets
