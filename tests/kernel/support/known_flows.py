"""The flows that a node's programs know of: read, made older, and ended."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import numpy as np

from ebpf.flowtable import FlowTable
from ebpf.layouts import Bundle
from ebpf.maps.base import Map
from ebpf.programs import Generation
from tests.kernel.support.flows import Flow, Flows


class KnownFlows:
    """Of programs and maps that a subclass makes."""

    bundle: Bundle
    maps: Mapping[str, Map]
    programs: Generation
    flow_table: Flows

    def flows(self, family: int | None = None) -> list[Flow]:
        """The cells of every flow, of both families unless one is given."""
        return [flow for flow in self.flow_table.read(family) if "note" not in flow.flags]

    def notes(self, family: int | None = None) -> list[Flow]:
        """What is known of conversations that are no flows, and of tuples that rest."""
        return [flow for flow in self.flow_table.read(family) if "note" in flow.flags]

    def noted(self) -> int:
        """How many conversations of the node's own are known."""
        return sum(n.protocol == socket.IPPROTO_TCP or "replied" in n.flags for n in self.notes())

    def age(self, beats: int) -> None:
        """As if everything had been seen that much earlier."""
        self.flow_table.age(beats)

    def sweep(self) -> None:
        """Ends what is over and has no tuple that must rest, as the agent does a moment later."""
        for family in (4, 6):
            cells = self.flow_table.read(family)
            by_place = {cell.place: cell for cell in cells}
            ended = [
                (cell.place, cell.generation)
                for cell in cells
                if cell.state == "time_wait"
                and not cell.reply
                and "first" not in by_place[cell.next].flags
            ]
            self._end(family, ended)

    def forget_flows(self) -> None:
        """Ends every flow, as on another node that never had one."""
        for family in (4, 6):
            cells = [c for c in self.flow_table.read(family) if not c.reply and c.state != "side"]
            self._end(family, [(cell.place, cell.generation) for cell in cells])

    def _end(self, family: int, ended: list[tuple[int, int]]) -> None:
        places, generations = np.array(ended, np.uint32).reshape(-1, 2).T
        table = FlowTable(str(family), self.maps, self.bundle.enums, self.programs.fds)
        assert table.end(places, generations, self.bundle.enums["END_CLOSED"]) == len(ended)
