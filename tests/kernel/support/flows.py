"""The flow tables as a test sees them: addresses as text, ports and states by name."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ebpf.maps import HashMap


@dataclass(frozen=True, slots=True)
class Flow:
    """One entry: the tuple it matches, and what it writes."""

    table: str
    src: str
    sport: int
    dst: str
    dport: int
    protocol: int
    address: str
    port: int
    client_port: int
    state: str
    flags: frozenset[str]
    backend: int
    service: int
    seen: int
    beat: int
    raw_key: bytes
    raw_value: bytes

    @property
    def reply(self) -> bool:
        return "reply" in self.flags

    @property
    def lru(self) -> bool:
        return self.table.endswith("_lru")


class Flows:
    """All tables; `enums` are the numbers of consts.h."""

    def __init__(self, enums: Mapping[str, int], tables: Mapping[str, HashMap]) -> None:
        self.tables = tables
        names = (
            "SYN",
            "ESTABLISHED",
            "CLOSING",
            "RESET",
            "TIME_WAIT",
            "DATAGRAM",
            "SIDE",
            "FIN_WAIT",
        )
        self._states = {enums[f"FLOW_{name}"]: name.lower() for name in names}
        bits = ("FIN", "FIRST", "RST", "ACKED", "REPLY", "MASQUERADED", "DIRECT", "REPLIED")
        self._flags = {enums[f"FLOW_{name}"]: name.lower() for name in bits}
        self._id_mask = enums["BACKEND_ID_MASK"]

    def read(self, family: int | None = None) -> list[Flow]:
        """Every entry, of both families unless one is given."""
        return [
            self._flow(name, key, value)
            for name, table in self.tables.items()
            if family is None or name.startswith(f"flows{family}")
            for key, value in table.items()
        ]

    def write(self, flow: Flow, **fields: int) -> None:
        """Changes fields of an entry that exists."""
        table = self.tables[flow.table]
        out = bytearray(flow.raw_value)
        for name, value in fields.items():
            place = table.spec.value.field(name)
            out[place.offset : place.offset + place.size] = value.to_bytes(place.size, "little")
        table.put(flow.raw_key, bytes(out))

    def delete(self, flow: Flow) -> None:
        assert self.tables[flow.table].delete(flow.raw_key)

    def count(self, table: str) -> int:
        return len(self.tables[table].read_all()[0])

    def _flow(self, name: str, key: bytes, value: bytes) -> Flow:
        spec = self.tables[name].spec
        tuple_, entry = spec.key.unpack(key), spec.value.unpack(value)
        return Flow(
            name,
            _text(tuple_["src"]),
            socket.ntohs(tuple_["sport"]),
            _text(tuple_["dst"]),
            socket.ntohs(tuple_["dport"]),
            tuple_["proto"],
            _text(entry["addr"]),
            socket.ntohs(entry["port"]),
            socket.ntohs(entry["client_port"]),
            self._states.get(entry["state"], str(entry["state"])),
            frozenset(text for bit, text in self._flags.items() if entry["flags"] & bit),
            entry["backend"] & self._id_mask,
            entry["service"],
            entry["seen"],
            entry["beat"],
            key,
            value,
        )


def _text(raw: Any) -> str:
    """An address as a record holds it: an int in IPv4 records, 16 bytes in IPv6 ones."""
    if isinstance(raw, int):
        return socket.inet_ntop(socket.AF_INET, raw.to_bytes(4, "little"))
    return socket.inet_ntop(socket.AF_INET6, raw)
