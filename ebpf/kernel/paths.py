"""Hearing at once of what may send packets another way, or let somebody have a say about them."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

import msgspec

from ebpf.errors import KernelError
from ebpf.kernel import dump
from ebpf.kernel.netfilter import NFTABLES_GROUP

# RTNLGRP_*: links, neighbours, tc, addresses, routes and rules of both families, forwarding
# switched on and off, next hops.
_GROUPS: Final = (1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25, 32)
_NEW_NEIGHBOUR, _DEL_NEIGHBOUR = 28, 29
_RULES: Final = (32, 33)
_NEW_ROUTE, _GET_ROUTE = 24, 26
_ROUTE_HEAD = 12  # struct rtmsg
_METRICS, _MTU = 8, 2
NO_MTU: Final = 0xFFFF  # of no route
_TRAFFIC_CONTROL: Final = range(36, 56)
_NEIGHBOUR_HEAD = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, index, state, flags, type
_ADDRESS, _LINK_ADDRESS = 1, 2
_USABLE_STATES = 0xDE  # permanent, noarp, reachable, stale, delay, probe
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_MOST_NEIGHBOURS = 65536


class Seen(msgspec.Struct, frozen=True):
    """What changed: `hops`, where packets go; `rules`, who has a say about them. `mtu` is the least
    that a new route has; after `lost` there may have been anything."""

    hops: bool = False
    rules: bool = False
    mtu: int = NO_MTU
    lost: bool = False


def least_mtu() -> int:
    """The least MTU that any route has of its own. Raises KernelError."""
    found = [NO_MTU]
    for family in _FAMILIES:
        head = bytes([family]).ljust(_ROUTE_HEAD, b"\0")
        try:
            found += map(_mtu_of, dump.ask(dump.NETLINK_ROUTE, _GET_ROUTE, head))
        except KernelError as error:
            if error.errno not in dump.ABSENT:
                raise
    return min(found)


def _mtu_of(route: bytes) -> int:
    metrics = dump.attributes(route, _ROUTE_HEAD).get(_METRICS)
    raw = dump.attributes(metrics).get(_MTU) if metrics else None
    return min(NO_MTU, struct.unpack("=I", raw)[0]) if raw else NO_MTU


class Watch:
    """A subscription in the calling thread's network namespace. `read` never waits."""

    def __init__(self) -> None:
        """Raises KernelError."""
        self._neighbours: dict[tuple[int, bytes], bytes] = {}
        with ExitStack() as undo:
            self._routes = undo.enter_context(dump.subscribe(dump.NETLINK_ROUTE, _GROUPS))
            self._filters: socket.socket | None = None
            with contextlib.suppress(KernelError):  # a kernel without netfilter
                self._filters = undo.enter_context(
                    dump.subscribe(dump.NETLINK_NETFILTER, (NFTABLES_GROUP,))
                )
            self._undo = undo.pop_all()

    @property
    def files(self) -> Sequence[socket.socket]:
        """Readable when there is something."""
        return (self._routes,) if self._filters is None else (self._routes, self._filters)

    def read(self) -> Seen:
        """All that is waiting. What the kernel had to drop may have been anything."""
        messages, lost = dump.drain(self._routes)
        hops = rules = lost
        mtu = NO_MTU
        for kind, payload in messages:
            if kind in _RULES or kind in _TRAFFIC_CONTROL:
                rules = True
            elif kind in (_NEW_NEIGHBOUR, _DEL_NEIGHBOUR):
                hops = self._is_other_neighbour(kind, payload) or hops
            else:
                hops = True
            if kind == _NEW_ROUTE:
                mtu = min(mtu, _mtu_of(payload))
        if self._filters is not None:
            changes, dropped = dump.drain(self._filters)
            rules = rules or dropped or bool(changes)
        return Seen(hops, rules, mtu, lost)

    def _is_other_neighbour(self, kind: int, payload: bytes) -> bool:
        """Whether the neighbour has another link address: mostly it was only asked again."""
        family, index, state, _, _ = _NEIGHBOUR_HEAD.unpack_from(payload)
        if family not in _FAMILIES:  # a bridge's
            return False
        found = dump.attributes(payload, _NEIGHBOUR_HEAD.size)
        key = (index, found.get(_ADDRESS, b""))
        usable = kind == _NEW_NEIGHBOUR and state & _USABLE_STATES
        address = found.get(_LINK_ADDRESS, b"") if usable else b""
        if not address:
            return self._neighbours.pop(key, None) is not None or kind == _DEL_NEIGHBOUR
        if len(self._neighbours) >= _MOST_NEIGHBOURS:
            self._neighbours.clear()
        before, self._neighbours[key] = self._neighbours.get(key), address
        return before != address

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
