"""The connections being translated: listing those that match, and finding all entries of each.

A flow has an entry per direction, found by the packet's own tuple (bpf_src/flow.h); a pod that
reaches itself has two more (bpf_src/masquerade.h).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from lbctl.addresses import format_endpoint
from lbctl.datapath import consts
from lbctl.datapath.consts import current_tick
from lbctl.datapath.flows import STEP_ENTRIES, are_pairs, pair_keys, wide_addresses
from lbctl.datapath.tables import HashTable, Records
from lbctl.inspect import names
from lbctl.inspect.flowfilter import STATES, FlowFilter
from lbctl.inspect.services import TICK_SECONDS
from lbctl.model.names import PortName

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
    def flow(self) -> Any:
        """The value's fields, as the programs write them."""
        return np.frombuffer(self.value, self.table.spec.value.dtype)[0]

    @property
    def tuple(self) -> Any:
        """The key's fields."""
        return np.frombuffer(self.key, self.table.spec.key.dtype)[0]


# The two tables of one family: established TCP, and the one that forgets.
Family = tuple[HashTable, HashTable]


def list_flows(tables: FlowTables, wanted: FlowFilter) -> Iterator[FlowRow]:
    """Flows that match, in no order; they come and go meanwhile."""
    name_of = names.reader(tables.names)
    for family in _families(tables):
        for entry, partner in _matching(family, wanted, reply=False):
            yield _row(entry, partner, name_of)


def entries_of(tables: FlowTables, wanted: FlowFilter) -> Iterator[list[Entry]]:
    """For each flow that matches, all its entries. A flow of which only the reply entry is left
    counts too."""
    for family in _families(tables):
        for entry, partner in _matching(family, wanted, reply=False):
            yield [entry, *([partner] if partner else []), *_hairpin_sides(entry, family)]
        for entry, partner in _matching(family, wanted, reply=True):
            if partner is None:
                yield [entry]


def _families(tables: FlowTables) -> tuple[Family, Family]:
    return (tables.flows4, tables.flows4_lru), (tables.flows6, tables.flows6_lru)


def _matching(
    family: Family, wanted: FlowFilter, *, reply: bool
) -> Iterator[tuple[Entry, Entry | None]]:
    """Entries of one direction that match, each with that of the other direction."""
    for table in family:
        for keys, values in table.batches():
            chosen = np.flatnonzero(wanted.matches(keys, values, reply=reply))
            for start in range(0, len(chosen), STEP_ENTRIES):
                part = chosen[start : start + STEP_ENTRIES]
                yield from zip(
                    _entries(table, keys[part], values[part]),
                    _partners(family, keys[part], values[part]),
                    strict=True,
                )


def _entries(table: HashTable, keys: Records, values: Records) -> Iterator[Entry]:
    for key, value in zip(keys, values, strict=True):
        yield Entry(table, key.tobytes(), value.tobytes())


def _partners(family: Family, keys: Records, values: Records) -> list[Entry | None]:
    """The entries of the other direction, in the order of `keys`."""
    found = [_get(family, key.tobytes()) for key in pair_keys(keys, values)]
    present = [i for i, entry in enumerate(found) if entry]
    if not present:
        return found
    raw = b"".join(entry.value for entry in found if entry)
    fitting = are_pairs(np.frombuffer(raw, values.dtype), keys[present], values[present])
    for i, fits in zip(present, fitting, strict=True):
        if not fits:
            found[i] = None
    return found


def _get(family: Family, key: bytes) -> Entry | None:
    for table in family:
        if (value := table.get(key)) is not None:
            return Entry(table, key, value)
    return None


def _hairpin_sides(entry: Entry, family: Family) -> list[Entry]:
    """The helper entries of a hairpin flow, given its forward entry (find_sides() of flow.h)."""
    flow, proto = entry.flow, int(entry.tuple["proto"])
    if not int(flow["flags"]) & consts.FLOW_MASQUERADED:
        return []
    pack = entry.table.spec.key.pack
    pod, port, seen_as = flow["addr"].tobytes(), int(flow["port"]), int(flow["client_port"])
    side = _get(family, pack(src=pod, sport=seen_as, dst=pod, dport=port, proto=proto))
    if side is None or side.flow["state"] != consts.FLOW_SIDE:
        return []
    node, node_port = side.flow["addr"].tobytes(), int(side.flow["port"])
    back = _get(family, pack(src=pod, sport=port, dst=node, dport=node_port, proto=proto))
    return [side, *([back] if back else [])]


def _row(entry: Entry, reply: Entry | None, name_of: Callable[[int], PortName]) -> FlowRow:
    key, flow = entry.tuple, entry.flow
    proto = int(key["proto"])
    packets_in, bytes_in = _counted(entry)
    packets_out, bytes_out = _counted(reply) if reply else (0, 0)
    seen = max(int(item.flow["seen"]) for item in (entry, reply) if item)
    return FlowRow(
        service=name_of(int(flow["service"])),
        protocol=PROTOCOLS.get(proto, str(proto)),
        client=_endpoint(key["src"], key["sport"]),
        address=_endpoint(key["dst"], key["dport"]),
        backend=_endpoint(flow["addr"], flow["port"]),
        state=STATES[int(flow["state"])],
        kind=_kind(int(flow["flags"])),
        client_port=socket.ntohs(int(flow["client_port"]))
        if flow["client_port"] != key["sport"]
        else 0,
        idle_seconds=round(max(0, current_tick() - seen) * TICK_SECONDS, 1),
        packets_in=packets_in,
        bytes_in=bytes_in,
        packets_out=packets_out,
        bytes_out=bytes_out,
        table=entry.table.name,
    )


def _kind(flags: int) -> str:
    if flags & consts.FLOW_DIRECT:
        return "direct"
    return "hairpin" if flags & consts.FLOW_MASQUERADED else "service"


def _counted(entry: Entry) -> tuple[int, int]:
    """Packets and bytes, those of the current tick included."""
    flow = entry.flow
    return (
        int(flow["packets"]) + int(flow["tick_packets"]),
        int(flow["bytes"]) + int(flow["tick_bytes"]),
    )


def _endpoint(address: Any, port: Any) -> str:
    (row,) = wide_addresses(np.array([address]))
    return format_endpoint(row.tobytes(), socket.ntohs(int(port)))
