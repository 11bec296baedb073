"""Flows as 0.1.0 kept them, an entry per direction in hash maps: read as flows of cells.

What its numbers meant is told here, since bpf_src tells it no more.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ebpf.flowtable import CELL
from lbctl.datapath import clock, consts
from lbctl.datapath.records import rows_as_bytes
from lbctl.datapath.tables import Records

# By family. Plain entries were TCP's alone, and went before those that could be forgotten.
TABLES: Final = {"4": ("flows4", "flows4_lru"), "6": ("flows6", "flows6_lru")}
_TICK_SECONDS: Final = (1 << 30) / 1e9

_SIDE: Final = 7
_STATES: Final = {
    1: consts.STATE_SYN,
    2: consts.STATE_ESTABLISHED,
    3: consts.STATE_CLOSING,
    4: consts.STATE_RESET,
    5: consts.STATE_TIME_WAIT,
    6: consts.STATE_DATAGRAM,
    8: consts.STATE_FIN_WAIT,
}
_FIN, _FIRST, _RST, _ACKED = 1, 2, 4, 8
_REPLY, _MASQUERADED, _DIRECT, _REPLIED = 16, 32, 64, 128
_FLAGS: Final = {
    _FIN: consts.CELL_FIN,
    _FIRST: consts.CELL_FIRST,
    _RST: consts.CELL_RST,
    _ACKED: consts.CELL_ACKED,
}

Ports = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries of one family, and where each key is among them."""

    keys: Records
    values: Records
    places: dict[bytes, int]

    def find(self, keys: Records) -> npt.NDArray[np.int64]:
        """Places of these keys; -1 for one that is not there."""
        found = (self.places.get(key, -1) for key in _pieces(keys))
        return np.fromiter(found, np.int64, len(keys))


def rings(tables: Iterable[tuple[Records, Records]], node_ports: Ports, tick: int) -> Records:
    """The flows of one family whose entries are all there: a row of cells for each, for
    `ebpf.flowtable.FlowTable.open`.

    `tables` are keys and values of each table, the one that counts first; `node_ports` the ports
    of flows that the node's own sockets begin; `tick` the clock of `seen` now.
    """
    entries = _joined(tables)
    keys, values = entries.keys, entries.values
    flags, state = values["flags"], values["state"]
    forward = np.flatnonzero((flags & _REPLY == 0) & np.isin(state, list(_STATES)))
    reply = entries.find(_pair_keys(keys[forward], values[forward]))
    whole = reply >= 0
    whole[whole] = _are_pairs(values[reply[whole]], keys[forward[whole]], values[forward[whole]])
    forward, reply = forward[whole], reply[whole]
    sides = _sides(entries, forward)
    lost = (values["flags"][forward] & _MASQUERADED != 0) & (sides[:, 0] < 0)
    forward, reply, sides = forward[~lost], reply[~lost], sides[~lost]
    cells: Records = np.zeros((len(forward), 4), CELL)
    of_node = _in_range(values["client_port"][forward], node_ports)
    seen = _beats(values["seen"], tick)
    for place, which in enumerate((forward, reply, sides[:, 0], sides[:, 1])):
        there = np.flatnonzero(which >= 0)
        found = which[there]
        cells[there, place] = _cells(keys[found], values[found], seen[found])
        cells["kind"][there, place] |= (consts.CELL_NODE * of_node[there]).astype(np.uint8)
    masqueraded = values["flags"][forward] & _MASQUERADED != 0
    cells["kind"][masqueraded, 2:] |= consts.CELL_MASQUERADED
    replied = (values["flags"][forward] | values["flags"][reply]) & _REPLIED != 0
    cells["flags"][replied, 1] |= consts.CELL_REPLIED
    states = np.array([_STATES[number] for number in values["state"][forward].tolist()], np.uint8)
    cells["state"] = states[:, None]
    direct = values["flags"][forward] & _DIRECT != 0
    for name in ("backend", "service"):
        cells[name] = np.where(direct, 0, values[name][forward])[:, None]
    return cells


def _joined(tables: Iterable[tuple[Records, Records]]) -> _Entries:
    all_keys: list[Records] = []
    all_values: list[Records] = []
    places: dict[bytes, int] = {}
    for keys, values in tables:
        fresh = np.array([key not in places for key in _pieces(keys)], bool)
        first = len(places)
        all_keys.append(keys[fresh])
        all_values.append(values[fresh])
        places.update((key, first + n) for n, key in enumerate(_pieces(keys[fresh])))
    return _Entries(np.concatenate(all_keys), np.concatenate(all_values), places)


def _pair_keys(keys: Records, values: Records) -> Records:
    """Keys of the reply entries of these forward ones."""
    pairs = np.zeros(len(keys), keys.dtype)
    pairs["proto"] = keys["proto"]
    pairs["src"], pairs["sport"] = values["addr"], values["port"]
    pairs["dst"], pairs["dport"] = keys["src"], values["client_port"]
    return pairs


def _are_pairs(pairs: Records, keys: Records, values: Records) -> npt.NDArray[np.bool_]:
    """Whether these entries, found under the pair keys, are replies of those flows."""
    same: npt.NDArray[np.bool_] = (
        (pairs["flags"] & _REPLY != 0)
        & (pairs["port"] == keys["dport"])
        & (pairs["client_port"] == keys["sport"])
        & (_bytes(pairs["addr"]) == _bytes(keys["dst"])).all(axis=1)
    )
    return same


def _sides(entries: _Entries, forward: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places of the two more entries of those that are masqueraded, -1 for others: of what goes out
    to the backend, and of what comes back."""
    keys, values = entries.keys[forward], entries.values[forward]
    found = np.full((len(forward), 2), -1, np.int64)
    masqueraded = np.flatnonzero(values["flags"] & _MASQUERADED != 0)
    out = np.zeros(len(masqueraded), keys.dtype)
    for name, column in (
        ("src", keys["src"]),
        ("sport", values["client_port"]),
        ("dst", values["addr"]),
        ("dport", values["port"]),
        ("proto", keys["proto"]),
    ):
        out[name] = column[masqueraded]
    places = entries.find(out)
    there = (places >= 0) & (entries.values["state"][places] == _SIDE)
    rows, places = masqueraded[there], places[there]
    back = np.zeros(len(rows), keys.dtype)
    for name, column in (
        ("src", entries.keys["dst"]),
        ("sport", entries.keys["dport"]),
        ("dst", entries.values["addr"]),
        ("dport", entries.values["port"]),
        ("proto", entries.keys["proto"]),
    ):
        back[name] = column[places]
    ends = entries.find(back)
    there = (ends >= 0) & (entries.values["state"][ends] == _SIDE)
    found[rows[there], 0], found[rows[there], 1] = places[there], ends[there]
    return found


def _cells(keys: Records, values: Records, seen: npt.NDArray[np.uint32]) -> Records:
    """Cells as these entries were."""
    cells: Records = np.zeros(len(keys), CELL)
    for name in ("src", "dst"):
        cells[name] = _wide(keys[name])
    for name in ("sport", "dport", "proto"):
        cells[name] = keys[name]
    cells["addr"] = _wide(values["addr"])
    cells["port"], cells["client_port"] = values["port"], values["client_port"]
    cells["seen"] = seen
    # The totals have all but those of the last moment.
    cells["packets"], cells["bytes"] = values["tick_packets"], values["tick_bytes"]
    flags, side = values["flags"], values["state"] == _SIDE
    kind = consts.CELL_REPLY * (flags & _REPLY != 0) + consts.CELL_SIDE * side
    kind = kind + consts.CELL_MASQUERADED * (flags & _MASQUERADED != 0)
    cells["kind"] = kind + consts.CELL_DIRECT * (flags & _DIRECT != 0)
    if "ack" in (values.dtype.names or ()):
        cells["ack"] = np.where(side, 0, values["ack"])
        cells["flags"] = sum(new * (flags & old != 0) for old, new in _FLAGS.items())
    else:  # what the first ones acknowledged is known again with each direction's next packet
        cells["flags"] = sum(_FLAGS[old] * (flags & old != 0) for old in (_FIN, _FIRST))
    return cells


def _beats(seen: npt.NDArray[np.uint32], tick: int) -> npt.NDArray[np.uint32]:
    """Beats of these ticks."""
    ages = (np.uint32(tick & 0xFFFFFFFF) - seen).astype(np.int32).clip(0)
    passed = np.floor(ages * (_TICK_SECONDS / clock.seconds(1))).astype(np.uint32)
    return (np.uint32(clock.current_beat()) - passed).astype(np.uint32)


def _in_range(ports: npt.NDArray[np.uint16], bounds: Ports) -> npt.NDArray[np.bool_]:
    host = ports.byteswap() if socket.htons(1) != 1 else ports
    found: npt.NDArray[np.bool_] = (host >= bounds[0]) & (host <= bounds[1])
    return found


def _bytes(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    packed = np.ascontiguousarray(column)
    return packed.view(np.uint8).reshape(len(packed), packed.dtype.itemsize)


def _wide(column: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(n, 16) address bytes of IPv4 numbers or IPv6 addresses."""
    narrow = _bytes(column)
    if narrow.shape[1] == 16:
        return narrow
    wide = np.zeros((len(narrow), 16), np.uint8)
    wide[:, 10:12] = 0xFF
    wide[:, 12:] = narrow
    return wide


def _pieces(records: Records) -> list[bytes]:
    """Each record's bytes."""
    raw = rows_as_bytes(np.ascontiguousarray(records)).tobytes()
    size = records.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
