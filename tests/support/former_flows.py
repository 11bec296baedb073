"""Flow entries as 0.1.0 made them, in arrays of its layout."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from lbctl.addresses import parse_address
from lbctl.datapath.tables import Records

TCP, UDP = 6, 17
# Numbers of its bpf_src/consts.h.
ESTABLISHED, CLOSING, TIME_WAIT, DATAGRAM, SIDE = 2, 3, 5, 6, 7
FIN, FIRST, RST, ACKED, REPLY, MASQUERADED, DIRECT, REPLIED = 1, 2, 4, 8, 16, 32, 64, 128
NODE_PORTS = (64512, 65535)

Place = tuple[str, int]


def key_dtype(family: int) -> np.dtype[Any]:
    address: Any = "u4" if family == 4 else np.dtype([("w", "u4", (4,))])
    fields: list[Any] = [("src", address), ("dst", address)]
    return np.dtype([*fields, ("sport", "u2"), ("dport", "u2"), ("proto", "u1"), ("pad", "u1", 3)])


def value_dtype(family: int, ack: str = "ack") -> np.dtype[Any]:
    """`ack` was "peer_fin" in the first layout."""
    address: Any = "u4" if family == 4 else np.dtype([("w", "u4", (4,))])
    words: list[Any] = [(name, "u4") for name in ("backend", "service", "seen", ack)]
    return np.dtype(
        [
            ("addr", address),
            ("port", "u2"),
            ("client_port", "u2"),
            *words,
            ("state", "u1"),
            ("flags", "u1"),
            ("beat", "u2"),
            ("tick_packets", "u4"),
            ("tick_bytes", "u4"),
            ("packets", "u4"),
            ("bytes", "u8"),
        ]
    )


class FormerFlows:
    """The table of one family."""

    def __init__(self, family: int = 4, ack: str = "ack") -> None:
        self.family = family
        self.keys = np.zeros(0, key_dtype(family))
        self.values = np.zeros(0, value_dtype(family, ack))

    @property
    def entries(self) -> tuple[Records, Records]:
        return self.keys, self.values

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
        **values: int,
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
