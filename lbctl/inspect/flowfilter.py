"""Which flows are meant: filters over whole batches of cells at once."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from lbctl.addresses import IPV4, Prefix, host_prefix, parse_address, parse_prefix
from lbctl.datapath import consts, flows
from lbctl.datapath.tables import Records

STATES = {
    consts.STATE_SYN: "opening",
    consts.STATE_ESTABLISHED: "established",
    consts.STATE_FIN_WAIT: "fin-wait",
    consts.STATE_CLOSING: "closing",
    consts.STATE_RESET: "reset",
    consts.STATE_TIME_WAIT: "time-wait",
    consts.STATE_DATAGRAM: "datagram",
}
# A flow that is over keeps its tuples, and is nobody's connection any more (bpf_src/account.h).
LIVE = tuple({*STATES} - {consts.STATE_RESET, consts.STATE_TIME_WAIT})

Mask = npt.NDArray[np.bool_]
_MAPPED = np.frombuffer(bytes(10) + b"\xff\xff", np.uint8)  # what IPv4 begins with


class Target(msgspec.Struct, frozen=True):
    """An address or network, with any port (0) or one."""

    prefix: Prefix
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Target:
        """`10.0.0.1`, `10.0.0.1:80`, `10.0.0.0/8`, `fd00::1`, `[fd00::1]:80`. Raises ValueError."""
        if "/" in text:
            return cls(parse_prefix(text))
        host, port = text, ""
        if text.startswith("["):
            host, bracket, port = text[1:].partition("]")
            if not bracket or not (port == "" or port.startswith(":")):
                raise ValueError(f"{text!r} is not like [fd00::1]:80")
            port = port[1:]
        elif text.count(":") == 1:
            host, _, port = text.partition(":")
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"{port!r} in {text!r} is not a port")
        return cls(host_prefix(parse_address(host)), int(port or 0))


class FlowFilter(msgspec.Struct, frozen=True):
    """All that is given must hold. `services` are ids, `states` the keys of STATES."""

    services: tuple[int, ...] | None = None
    client: Target | None = None
    backend: Target | None = None
    protocol: int = 0
    states: tuple[int, ...] = tuple(STATES)

    def matches(self, cells: Records) -> Mask:
        """Which of these are the forward cells of flows that are meant."""
        found = flows.forward(cells)
        found &= np.isin(cells["state"], self.states)
        if self.services is not None:
            found &= np.isin(cells["service"], self.services)
        if self.protocol:
            found &= cells["proto"] == self.protocol
        for target, address, port in (
            (self.client, "src", "sport"),
            (self.backend, "addr", "port"),
        ):
            if target is not None:
                found &= inside(cells[address], target.prefix)
                if target.port:
                    found &= cells[port] == socket.htons(target.port)
        return found


def inside(column: npt.NDArray[Any], prefix: Prefix) -> Mask:
    """Which addresses lie in `prefix`; none if they are of the other family."""
    bits = (1 << 128) - (1 << 128 - prefix.length)
    mask = np.frombuffer(bits.to_bytes(16, "big"), np.uint8)
    network = np.frombuffer(prefix.address, np.uint8)
    inside: Mask = ((column & mask) == network).all(axis=1)
    inside &= (column[:, : len(_MAPPED)] == _MAPPED).all(axis=1) == (prefix.family == IPV4)
    return inside
