"""Flow entries as 0.1.0 made them, in arrays of its layout."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from ebpf.layouts import HASH, LRU_HASH, Field, MapSpec, Record
from lbctl.addresses import parse_address
from lbctl.datapath.tables import Records
from tests.support.fake_tables import fields

TCP, UDP = 6, 17
# Numbers of its bpf_src/consts.h.
ESTABLISHED, CLOSING, TIME_WAIT, DATAGRAM, SIDE = 2, 3, 5, 6, 7
FIN, FIRST, RST, ACKED, REPLY, MASQUERADED, DIRECT, REPLIED = 1, 2, 4, 8, 16, 32, 64, 128
NODE_PORTS = (64512, 65535)

Place = tuple[str, int]


def map_specs(family: int, ack: str = "ack") -> tuple[MapSpec, MapSpec]:
    """The table of established TCP, and the one that forgot. `ack` was "peer_fin" in the first
    layout."""
    address = "u32" if family == 4 else "addr"
    key, size = fields(
        ("src", address), ("dst", address), ("sport", "u16"), ("dport", "u16"), ("proto", "u8")
    )
    pad = Field("pad", size, 3, 3, "u8")
    value, width = fields(
        ("addr", address),
        ("port", "u16"),
        ("client_port", "u16"),
        *((name, "u32") for name in ("backend", "service", "seen", ack)),
        ("state", "u8"),
        ("flags", "u8"),
        ("beat", "u16"),
        *((name, "u32") for name in ("tick_packets", "tick_bytes", "packets")),
        ("bytes", "u64"),
    )
    records = Record("flow_key", size + 3, (*key, pad)), Record("flow", width, value)
    plain, lru = f"flows{family}", f"flows{family}_lru"
    return MapSpec(plain, HASH, 0, *records), MapSpec(lru, LRU_HASH, 0, *records)


class FormerFlows:
    """The table of one family."""

    def __init__(self, family: int = 4, ack: str = "ack") -> None:
        self.family = family
        spec, _ = self._specs = map_specs(family, ack)
        self.keys: Records = np.zeros(0, spec.key.dtype)
        self.values: Records = np.zeros(0, spec.value.dtype)

    @property
    def entries(self) -> tuple[Records, Records]:
        # Joining arrays closes the gaps between fields.
        spec, _ = self._specs
        return self.keys.astype(spec.key.dtype), self.values.astype(spec.value.dtype)

    def put(
        self, source: Place, to: Place, becomes: Place, port: int, proto: int, **values: int
    ) -> None:
        """One entry; `port` becomes that of the other side."""
        key, value = np.zeros(1, self.keys.dtype), np.zeros(1, self.values.dtype)
        places = ((key, "src", source), (key, "dst", to), (value, "addr", becomes))
        for record, name, place in places:
            record[name] = np.frombuffer(self._raw(place[0]), record.dtype[name])
        key["sport"], key["dport"] = socket.htons(source[1]), socket.htons(to[1])
        key["proto"] = proto
        value["port"], value["client_port"] = socket.htons(becomes[1]), socket.htons(port)
        for name, number in values.items():
            value[name] = number
        self.keys = np.concatenate([self.keys, key])
        self.values = np.concatenate([self.values, value])

    def add(
        self,
        client: Place,
        service: Place,
        backend: Place,
        /,
        *,
        seen_as: int = 0,
        proto: int = TCP,
        reply: dict[str, int] | None = None,
        flags: int = 0,
        node: Place | None = None,
        **values: Any,
    ) -> None:
        """A flow; with `node`, its address and port there, a masqueraded one."""
        port = seen_as or client[1]
        if node:
            flags |= MASQUERADED
            side = {"state": SIDE, "service": values.get("service", 0)}
            out = {**side, "flags": REPLY}
            self.put((client[0], port), backend, node, backend[1], proto, **out)
            self.put(backend, node, (client[0], port), backend[1], proto, **side)
        self.put(client, service, backend, port, proto, flags=flags, **values)
        others = values | {"flags": flags | REPLY} | (reply or {})
        self.put(backend, (client[0], port), service, client[1], proto, **others)

    def _raw(self, address: str) -> bytes:
        raw = parse_address(address)
        return raw if self.family == 6 else raw[12:]
