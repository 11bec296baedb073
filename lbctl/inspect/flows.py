"""The connections being translated: listing those that match, and finding all entries of each.

A flow has an entry per direction, found by the packet's own tuple (bpf_src/flow.h); a pod that
reaches itself has two more (bpf_src/hairpin.h).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from lbctl import consts
from lbctl.addresses import format_endpoint
from lbctl.inspect import names
from lbctl.inspect.flowfilter import STATES, FlowFilter, wide
from lbctl.inspect.names import PortName
from lbctl.inspect.services import TICK_SECONDS
from lbctl.tables import HashTable

PROTOCOLS = {
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
}


class FlowTables(Protocol):
    """The maps this module reads."""

    @property
    def names(self) -> HashTable: ...
    @property
    def flows4(self) -> HashTable: ...
    @property
    def flows4_lru(self) -> HashTable: ...
    @property
    def flows6(self) -> HashTable: ...
    @property
    def flows6_lru(self) -> HashTable: ...


class FlowRow(msgspec.Struct, frozen=True):
    """One connection. "in" is to the backend; endpoints are address:port as text.

    `kind` is service, hairpin (a pod reaching itself) or direct (no service: only the client's port
    is changed). `client_port` is what the backend sees if that is not the client's own, else 0.
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


class Entry(NamedTuple):
    """One map entry: the table that holds it, and its bytes."""

    table: HashTable
    key: bytes
    value: bytes

    @property
    def key_record(self) -> Any:
        """The key's fields, as the programs write them."""
        return np.frombuffer(self.key, self.table.spec.key.dtype)[0]

    @property
    def flow(self) -> Any:
        """The value's fields."""
        return np.frombuffer(self.value, self.table.spec.value.dtype)[0]


# The two tables of one family: established TCP, and the one that forgets.
Family = tuple[HashTable, HashTable]


def list_flows(tables: FlowTables, wanted: FlowFilter) -> Iterator[FlowRow]:
    """Flows that match, in no order; they come and go meanwhile."""
    known = names.all_names(tables.names)
    for family in _families(tables):
        for entry in _matching(family, wanted, reply=False):
            yield _row(entry, _other_direction(entry, family), known)


def entries_of(tables: FlowTables, wanted: FlowFilter) -> Iterator[list[Entry]]:
    """For each flow that matches, all its entries. A flow of which only the reply entry is left
    counts too."""
    for family in _families(tables):
        for entry in _matching(family, wanted, reply=False):
            other = _other_direction(entry, family)
            yield [entry, *([other] if other else []), *_hairpin_sides(entry, family)]
        for entry in _matching(family, wanted, reply=True):
            if _other_direction(entry, family) is None:
                yield [entry]


def _families(tables: FlowTables) -> tuple[Family, Family]:
    return (tables.flows4, tables.flows4_lru), (tables.flows6, tables.flows6_lru)


def _matching(family: Family, wanted: FlowFilter, *, reply: bool) -> Iterator[Entry]:
    for table in family:
        for keys, values in table.batches():
            chosen = wanted.matches(keys, values, reply=reply)
            for key, value in zip(keys[chosen], values[chosen], strict=True):
                yield Entry(table, key.tobytes(), value.tobytes())


def _get(
    family: Family, proto: int, src: bytes, sport: int, dst: bytes, dport: int
) -> Entry | None:
    """The entry with this tuple; ports as they stand in records."""
    key = family[0].spec.key.pack(src=src, sport=sport, dst=dst, dport=dport, proto=proto)
    for table in family:
        if (value := table.get(key)) is not None:
            return Entry(table, key, value)
    return None


def _other_direction(entry: Entry, family: Family) -> Entry | None:
    """As make_pair_key() and is_pair() in flow.h."""
    key, flow = entry.key_record, entry.flow
    reply = int(flow["flags"]) & consts.FLOW_REPLY
    addr, port, client_port = flow["addr"].tobytes(), int(flow["port"]), int(flow["client_port"])
    proto = int(key["proto"])
    if reply:
        own = ("src", "sport", "dport")
        other = _get(family, proto, key["dst"].tobytes(), client_port, addr, port)
    else:
        own = ("dst", "dport", "sport")
        other = _get(family, proto, addr, port, key["src"].tobytes(), client_port)
    if other is None:
        return None
    found = other.flow
    belongs = (
        found["addr"].tobytes() == key[own[0]].tobytes()
        and found["port"] == key[own[1]]
        and found["client_port"] == key[own[2]]
        and int(found["flags"]) & consts.FLOW_REPLY != reply
    )
    return other if belongs else None


def _hairpin_sides(entry: Entry, family: Family) -> list[Entry]:
    """The helper entries of a hairpin flow, given its forward entry."""
    key, flow = entry.key_record, entry.flow
    if not int(flow["flags"]) & consts.FLOW_HAIRPIN:
        return []
    proto, pod = int(key["proto"]), flow["addr"].tobytes()
    port = int(flow["port"])
    side = _get(family, proto, pod, int(flow["client_port"]), pod, port)
    if side is None or int(side.flow["state"]) in STATES:
        return []
    node = side.flow
    back = _get(family, proto, pod, port, node["addr"].tobytes(), int(node["port"]))
    return [side, *([back] if back else [])]


def _row(entry: Entry, reply: Entry | None, known: dict[int, PortName]) -> FlowRow:
    key, flow = entry.key_record, entry.flow
    service, proto = int(flow["service"]), int(key["proto"])
    packets_in, bytes_in = _counted(entry)
    packets_out, bytes_out = _counted(reply) if reply else (0, 0)
    seen = max(int(item.flow["seen"]) for item in (entry, reply) if item)
    return FlowRow(
        service=known.get(service) or PortName.parse(f"service id {service}"),
        protocol=PROTOCOLS.get(proto, str(proto)),
        client=_endpoint(key["src"], key["sport"]),
        address=_endpoint(key["dst"], key["dport"]),
        backend=_endpoint(flow["addr"], flow["port"]),
        state=STATES[int(flow["state"])],
        kind=_kind(int(flow["flags"])),
        client_port=socket.ntohs(int(flow["client_port"]))
        if flow["client_port"] != key["sport"]
        else 0,
        idle_seconds=round(max(0, _now() - seen) * TICK_SECONDS, 1),
        packets_in=packets_in,
        bytes_in=bytes_in,
        packets_out=packets_out,
        bytes_out=bytes_out,
        table=entry.table.name,
    )


def _kind(flags: int) -> str:
    if flags & consts.FLOW_DIRECT:
        return "direct"
    return "hairpin" if flags & consts.FLOW_HAIRPIN else "service"


def _counted(entry: Entry) -> tuple[int, int]:
    """Packets and bytes, those of the current tick included."""
    flow = entry.flow
    return (
        int(flow["packets"]) + int(flow["tick_packets"]),
        int(flow["bytes"]) + int(flow["tick_bytes"]),
    )


def _now() -> int:
    """The current tick, as the programs count."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> consts.TICK_SHIFT


def _endpoint(address: Any, port: Any) -> str:
    return format_endpoint(wide(address.tobytes()), socket.ntohs(int(port)))
