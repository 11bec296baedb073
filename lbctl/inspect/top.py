"""Who has the most traffic now: differences of counters between two looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from ebpf.instance import Instance
from lbctl.inspect import names
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import FlowRow, list_flows
from lbctl.inspect.flowtotals import FlowTotals, Totals
from lbctl.inspect.instance import reasons
from lbctl.inspect.traffic import totals as with_living

KINDS: Final = ("services", "backends", "clients")
SORTS: Final = ("connections", "packets", "bytes", "active", "name")
_HISTORY: Final = 24  # looks that a sparkline is made of
_BARS: Final = "▁▂▃▄▅▆▇█"


class TopRow(msgspec.Struct, frozen=True):
    """One service port, endpoint or client. Rates are per second since the look before."""

    name: str
    connections: float  # new ones
    packets: float
    bytes: float
    active: int
    history: tuple[float, ...]  # bytes per second, the latest last


class Top(msgspec.Struct, frozen=True):
    """One look."""

    kind: str
    seconds: float  # since the look before
    rows: tuple[TopRow, ...]
    reasons: dict[str, float]  # packets per second by what was decided, where that was any


def _nobody(address: str) -> str:
    return ""


class Looks:
    """Takes looks, and remembers the one before and a little history."""

    def __init__(self, kind: str, name_of: Callable[[str], str] = _nobody) -> None:
        """`name_of`: what an address is called, empty if that is not known."""
        self._kind = kind
        self._name_of = name_of
        self._flow_totals = FlowTotals()
        self._before: Mapping[str, Totals] = {}
        self._reasons: Mapping[str, int] = {}
        self._at = 0.0
        self._history: dict[str, deque[float]] = {}

    def look(self, instance: Instance, now: float) -> Top:
        """The first one has no rates: there is nothing to compare with."""
        totals, decided = self._totals(instance), reasons(instance)
        first, seconds = not self._at, max(now - self._at, 1e-6)
        rows = []
        for name, total in totals.items():
            # What is new since then began at 0.
            before = total if first else self._before.get(name, Totals())
            connections = max(0, total.connections - before.connections) / seconds
            packets = max(0, total.packets - before.packets) / seconds
            octets = max(0, total.bytes - before.bytes) / seconds
            history = self._history.setdefault(name, deque(maxlen=_HISTORY))
            if not first:
                history.append(octets)
            rows.append(TopRow(name, connections, packets, octets, total.active, tuple(history)))
        changed = {
            reason: (number - self._reasons.get(reason, number)) / seconds
            for reason, number in decided.items()
            if number > self._reasons.get(reason, number)
        }
        self._history = {name: self._history[name] for name in totals}
        self._before, self._reasons, self._at = totals, decided, now
        return Top(self._kind, 0.0 if first else seconds, tuple(rows), changed)

    def _totals(self, instance: Instance) -> Mapping[str, Totals]:
        if self._kind == "services":
            return dict(_of_services(instance))
        return self._flow_totals.look(_of_flows(instance, self._kind, self._name_of))


def arranged(top: Top, sort: str, wanted: str, most: int) -> list[TopRow]:
    """The first `most` rows whose names have `wanted` in them; the largest first, or by name."""
    found = [row for row in top.rows if wanted in row.name]
    if sort == "name":
        return sorted(found, key=lambda row: row.name)[:most]
    return sorted(found, key=lambda row: (-(getattr(row, sort) or 0), row.name))[:most]


def sparkline(history: tuple[float, ...]) -> str:
    """A bar for each, as high as it is beside the highest."""
    highest = max(history, default=0.0)
    if not highest:
        return _BARS[0] * len(history)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in history)


def _of_services(instance: Instance) -> Iterator[tuple[str, Totals]]:
    counters = with_living(instance.service_counters.records, instance.flow_tables)
    for number, port in names.all_names(instance.names).items():
        record = counters[number]
        packets = int(record["packets_in"]) + int(record["packets_out"])
        octets = int(record["bytes_in"]) + int(record["bytes_out"])
        yield port.text, Totals(int(record["connections"]), packets, octets, int(record["live"]))


def _of_flows(
    instance: Instance, kind: str, name_of: Callable[[str], str]
) -> Iterator[tuple[str, FlowRow]]:
    for row in list_flows(instance, FlowFilter()):
        name = name_of(_address(row.client)) or _address(row.client)
        if kind == "backends":
            called = name_of(_address(row.backend))
            endpoint = f"{called}:{row.backend.rpartition(':')[2]}" if called else row.backend
            name = f"{endpoint} of {row.service.label}"
        yield name, row


def _address(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].strip("[]")
