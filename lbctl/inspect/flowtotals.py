"""What flows have carried by a name, though they come and go, and take their counts along."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from lbctl.inspect.flowfilter import LIVE, STATES
from lbctl.inspect.flows import FlowRow

_Identity = tuple[str, str, str, str, str]
_LIVE = {STATES[state] for state in LIVE}


class Totals(NamedTuple):
    """What has been counted so far. `active` are flows that are there now, and not over."""

    connections: int = 0
    packets: int = 0
    bytes: int = 0
    active: int = 0


class FlowTotals:
    """Remembers every flow of the look before: a sum of those that are there would shrink with each
    one that goes, and hide what the others carry."""

    def __init__(self) -> None:
        self._flows: dict[_Identity, tuple[int, int]] = {}
        self._totals: dict[str, Totals] = {}

    def look(self, rows: Iterable[tuple[str, FlowRow]]) -> dict[str, Totals]:
        """All flows, each with its name. Nothing in it is less than in the look before, but
        `active`; names without a flow are forgotten."""
        flows: dict[_Identity, tuple[int, int]] = {}
        connections, packets, octets = Counter[str](), Counter[str](), Counter[str]()
        active = Counter[str]()
        for name, row in rows:
            identity = (row.protocol, row.client, row.address, row.backend, row.service.text)
            counted = row.packets_in + row.packets_out, row.bytes_in + row.bytes_out
            before = self._flows.get(identity)
            if before is None or counted[0] < before[0]:  # another connection of the same ends
                connections[name] += 1
                before = 0, 0
            packets[name] += counted[0] - before[0]
            octets[name] += counted[1] - before[1]
            active[name] += row.state in _LIVE
            flows[identity] = counted
        self._flows = flows
        self._totals = {
            name: self._added(name, connections, packets, octets, active) for name in packets
        }
        return self._totals

    def _added(self, name: str, *gained: Counter[str]) -> Totals:
        connections, packets, octets, active = (counter[name] for counter in gained)
        known = self._totals.get(name, Totals())
        return Totals(
            known.connections + connections, known.packets + packets, known.bytes + octets, active
        )
