"""The table of flows as a test sees it: addresses as text, ports and states by name."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebpf.maps import ArrayMap

_BANKS = "ab"
_STATES = ("SYN", "ESTABLISHED", "CLOSING", "FIN_WAIT", "RESET", "TIME_WAIT", "DATAGRAM")
_KINDS = ("REPLY", "SIDE", "MASQUERADED", "DIRECT", "NODE", "NOTE", "FRAGMENT", "DSR")
_FLAGS = ("FIN", "FIRST", "RST", "ACKED", "REPLIED")


@dataclass(frozen=True, slots=True)
class Flow:
    """One cell: the tuple it matches, and what it writes. `flags` are its kinds, too."""

    family: int
    place: int
    src: str
    sport: int
    dst: str
    dport: int
    protocol: int
    address: str
    port: int
    client_port: int
    state: str  # "side" for those at the sides of a masqueraded flow
    flags: frozenset[str]
    generation: int
    next: int
    backend: int
    service: int
    packets: int
    bytes: int
    ack: int
    seen: int

    @property
    def reply(self) -> bool:
        return "reply" in self.flags

    @property
    def key(self) -> tuple[str, int, str, int, int]:
        return self.src, self.sport, self.dst, self.dport, self.protocol


class Flows:
    """Both families' tables; `enums` are the numbers of consts.h."""

    def __init__(self, enums: Mapping[str, int], arrays: Mapping[str, ArrayMap]) -> None:
        self._enums, self._arrays = enums, arrays
        self._states = {enums[f"STATE_{name}"]: name.lower() for name in _STATES}
        self._kinds = {enums[f"CELL_{name}"]: name.lower() for name in _KINDS}
        self._flags = {enums[f"CELL_{name}"]: name.lower() for name in _FLAGS}

    def read(self, family: int | None = None) -> list[Flow]:
        """Every live cell, of both families unless one is given."""
        families = (4, 6) if family is None else (family,)
        return [flow for each in families for flow in self._read(each)]

    def age(self, beats: int) -> None:
        """As if every packet had been seen that much earlier."""
        for family in (4, 6):
            for bank in _BANKS:
                states = self._states_of(family, bank)
                states["seen"] -= np.uint32(beats)

    def _states_of(self, family: int, bank: str) -> Any:
        if family == 6:
            return self._arrays[f"states6{bank}"].records
        return self._arrays[f"cells4{bank}"].records["state"]

    def _read(self, family: int) -> Iterator[Flow]:
        for number, bank in enumerate(_BANKS):
            cells = self._arrays[f"cells{family}{bank}"].records
            states = self._states_of(family, bank)
            condition = cells["head"] & np.uint64(self._enums["STATE_MASK"])
            for index in np.flatnonzero(condition >= self._enums["STATE_SYN"]):
                place = int(index) | number * self._enums["PLACE_BANK"]
                yield self._flow(family, place, cells[index], states[index])

    def _flow(self, family: int, place: int, cell: Any, state: Any) -> Flow:
        head, link = int(cell["head"]), int(state["link"])
        key = cell["key"] if family == 4 else cell
        kind = head >> self._enums["HEAD_KIND_SHIFT"] & 0xFF
        name = self._states[head & self._enums["STATE_MASK"]]
        kinds = [text for bit, text in self._kinds.items() if kind & bit]
        flags = link >> self._enums["LINK_FLAGS_SHIFT"]
        return Flow(
            family,
            place,
            _text(key["src"]),
            socket.ntohs(int(key["sport"])),
            _text(key["dst"]),
            socket.ntohs(int(key["dport"])),
            head >> self._enums["HEAD_PROTO_SHIFT"] & 0xFF,
            _text(cell["addr"]),
            socket.ntohs(int(cell["port"])),
            socket.ntohs(int(cell["client_port"])),
            "side" if "side" in kinds else name,
            frozenset([*kinds, *(text for bit, text in self._flags.items() if flags & bit)]),
            head >> self._enums["HEAD_GENERATION_SHIFT"],
            link & self._enums["LINK_PLACE_MASK"],
            int(state["backend"]) & self._enums["BACKEND_ID_MASK"],
            int(state["service"]),
            int(state["packets"]),
            int(state["bytes"]) & self._enums["BYTES_MASK"],
            int(state["ack"]),
            int(state["seen"]),
        )


def _text(raw: Any) -> str:
    """An address as a record holds it: a number in IPv4 records, four in IPv6 ones."""
    if isinstance(raw, np.integer):
        return socket.inet_ntop(socket.AF_INET, int(raw).to_bytes(4, "little"))
    return socket.inet_ntop(socket.AF_INET6, raw.tobytes())
