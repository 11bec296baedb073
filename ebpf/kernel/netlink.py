"""Interfaces, their addresses and default routes, and following their changes."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_IFF_UP = 1
_IFF_LOOPBACK = 8
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
SCOPE_GLOBAL = 0
_TABLE_MAIN = 254
_ROUTE_UNICAST = 1
# RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_RECEIVE_BUFFER = 4 << 20


class Link(msgspec.Struct, frozen=True):
    """One interface. `peer_netns` is the kernel's id of the namespace its peer is in, if that is
    another one; `master` and `peer` are interface indices, 0 for none."""

    ifindex: int
    ifname: str
    kind: str
    operstate: str
    up: bool
    loopback: bool
    master: int
    peer: int
    peer_netns: int | None
    bare: bool = False  # frames begin with the IP header, as in tunnels of layer 3


class Address(msgspec.Struct, frozen=True):
    """One address of an interface; `scope` is the kernel's (0 is global)."""

    ifindex: int
    address: IPAddress
    prefixlen: int
    scope: int


class Route(msgspec.Struct, frozen=True):
    """A default route of the main table."""

    ifindex: int
    family: int  # 4 or 6


class Network(msgspec.Struct, frozen=True):
    """What a namespace looked like at one moment."""

    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    default_routes: tuple[Route, ...]


class Changes(msgspec.Struct, frozen=True):
    """What happened since the last look. `links` are those that came or changed, in order, the last
    state of each; `gone` the indices of those deleted. After `lost` (the kernel dropped messages)
    only a new `read_network` tells."""

    links: tuple[Link, ...]
    gone: frozenset[int]
    addresses: bool
    routes: bool
    lost: bool


def read_network() -> Network:
    """Links, addresses and default routes of the calling thread's network namespace."""
    with IPRoute() as netlink:
        return Network(
            tuple(_link(message) for message in netlink.get_links()),
            tuple(filter(None, (_address(message) for message in netlink.get_addr()))),
            tuple(dict.fromkeys(r for m in netlink.get_routes() for r in _default_routes(m))),
        )


def links() -> list[Link]:
    """The interfaces alone."""
    with IPRoute() as netlink:
        return [_link(message) for message in netlink.get_links()]


class Watch:
    """A subscription to changes. `fileno()` is readable when there are some; `read` never waits."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, _GROUPS))
        self._marshal = MarshalRtnl()

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Changes:
        """Everything that is waiting, as one batch (empty if nothing is)."""
        changed: dict[int, Link] = {}
        gone: set[int] = set()
        addresses = routes = lost = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            for message in self._marshal.parse(data):
                event = message["event"]
                if event == "RTM_NEWLINK":
                    # A bridge reports its ports in a family of its own, with few attributes.
                    if message["family"] == socket.AF_UNSPEC:
                        changed.pop(message["index"], None)
                        changed[message["index"]] = _link(message)
                        gone.discard(message["index"])
                elif event == "RTM_DELLINK":
                    if message["family"] == socket.AF_UNSPEC:
                        changed.pop(message["index"], None)
                        gone.add(message["index"])
                elif event in ("RTM_NEWADDR", "RTM_DELADDR"):
                    addresses = True
                elif event in ("RTM_NEWROUTE", "RTM_DELROUTE"):
                    routes = routes or any(True for _ in _default_routes(message))
        return Changes(tuple(changed.values()), frozenset(gone), addresses, routes, lost)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        ifindex=message["index"],
        ifname=message.get_attr("IFLA_IFNAME") or "",
        kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
        operstate=(message.get_attr("IFLA_OPERSTATE") or "").lower(),
        up=bool(message["flags"] & _IFF_UP),
        loopback=bool(message["flags"] & _IFF_LOOPBACK),
        master=message.get_attr("IFLA_MASTER") or 0,
        peer=message.get_attr("IFLA_LINK") or 0,
        peer_netns=message.get_attr("IFLA_LINK_NETNSID"),
        bare=message["ifi_type"] not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
    )


def _address(message: Any) -> Address | None:
    # On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without a peer.
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    if not text:
        return None
    return Address(
        message["index"], ipaddress.ip_address(text), message["prefixlen"], message["scope"]
    )


def _default_routes(message: Any) -> Sequence[Route]:
    if (
        message["dst_len"]
        or message["type"] != _ROUTE_UNICAST
        or (message.get_attr("RTA_TABLE") or message["table"]) != _TABLE_MAIN
    ):
        return ()
    family = 4 if message["family"] == socket.AF_INET else 6
    indices = [message.get_attr("RTA_OIF")]
    indices += [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or ()]
    return [Route(index, family) for index in indices if index]
