"""The connections being translated: listing those that match, and ending them.

A flow is a ring of cells, two or four (bpf_src/cells.h); what there is to say of it is in the first
two, for packets to the backend and for those to the client.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np

from lbctl.addresses import format_endpoint
from lbctl.datapath import clock, consts, flows
from lbctl.datapath.flows import Rings
from lbctl.datapath.tables import FlowTable, HashTable
from lbctl.inspect import names
from lbctl.inspect.flowfilter import STATES, FlowFilter
from lbctl.model.names import PortName

PROTOCOLS = {
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
}


class FlowTables(Protocol):
    """What this module reads."""

    @property
    def names(self) -> HashTable: ...
    @property
    def flow_tables(self) -> Sequence[FlowTable]: ...


class FlowRow(msgspec.Struct, frozen=True):
    """One connection. "in" is to the backend; endpoints are address:port as text.

    `kind` is service, hairpin (a pod reaching itself), masqueraded (the backend sees the node's
    address), dsr (the packets go to the backend's node whole, and its answers do not come here),
    node (a socket of the node itself called) or direct (no service: only the client's
    port is changed). `client_port` is what the backend sees if that is not the client's own, else
    0.
    """

    service: PortName
    protocol: str
    client: str
    address: str  # what the client called
    backend: str
    state: str
    kind: str
    client_port: int
    idle_seconds: float
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    table: str
    age_seconds: float
    client_name: str = ""  # of pods or nodes, if they were asked for
    backend_name: str = ""


def list_flows(tables: FlowTables, wanted: FlowFilter) -> Iterator[FlowRow]:
    """Flows that match, in no order; they come and go meanwhile."""
    name_of = names.reader(tables.names)
    for table in tables.flow_tables:
        for rings in matching(table, wanted):
            beat = clock.current_beat()
            rows = zip(rings.forward, rings.reply, rings.seen.tolist(), strict=True)
            for cell, reply, seen in rows:
                times = clock.seconds(max(0, beat - seen)), _age(beat, int(cell["opened"]))
                yield _row(cell, reply, times, f"flows{table.family}", name_of)


def matching(table: FlowTable, wanted: FlowFilter) -> Iterator[Rings]:
    """Those flows of one family that match, some at a time."""
    for cells in table.snapshots(flows.STEP_CELLS, consts.STATE_LIVE):
        chosen = flows.take(cells, wanted.matches(cells))
        if len(chosen):
            yield flows.follow(chosen, table.at)


def _age(beat: int, opened: int) -> float:
    """Seconds since then; beats wrap."""
    passed = (beat - opened) & 0xFFFFFFFF
    return clock.seconds(passed) if passed < 1 << 31 else 0.0


def _row(
    cell: np.void,
    reply: np.void,
    times: tuple[float, float],
    table: str,
    name_of: Callable[[int], PortName],
) -> FlowRow:
    idle, age = times
    proto = int(cell["proto"])
    return FlowRow(
        service=name_of(int(cell["service"])),
        protocol=PROTOCOLS.get(proto, str(proto)),
        client=_endpoint(cell["src"], cell["sport"]),
        address=_endpoint(cell["dst"], cell["dport"]),
        backend=_endpoint(cell["addr"], cell["port"]),
        state=STATES[int(cell["state"])],
        kind=_kind(cell),
        client_port=socket.ntohs(int(cell["client_port"]))
        if cell["client_port"] != cell["sport"]
        else 0,
        idle_seconds=round(idle, 1),
        packets_in=int(cell["packets"]),
        bytes_in=int(cell["bytes"]),
        packets_out=int(reply["packets"]),
        bytes_out=int(reply["bytes"]),
        table=table,
        age_seconds=round(age, 1),
    )


def _kind(cell: np.void) -> str:
    kind = int(cell["kind"])
    if kind & consts.CELL_DIRECT:
        return "direct"
    if kind & consts.CELL_NODE:
        return "node"
    if kind & consts.CELL_DSR:
        return "dsr"
    if kind & consts.CELL_MASQUERADED:
        itself = cell["src"].tobytes() == cell["addr"].tobytes()
        return "hairpin" if itself else "masqueraded"
    return "service"


def _endpoint(address: np.generic, port: np.uint16) -> str:
    return format_endpoint(address.tobytes(), socket.ntohs(int(port)))
