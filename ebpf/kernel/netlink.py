"""Interfaces, their addresses and default routes, and following their changes.

These few attributes are read here: pyroute2 knows all of them, but importing it is a seventh of a
start. What is asked for more rarely is left to it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from ebpf.kernel import dump

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
_NEWLINK, _DELLINK = 16, 17
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE = 24, 25
_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_LINK_HEAD = struct.Struct("=BxHiIxxxx")  # struct ifinfomsg: family, type, index, flags
_ADDRESS_HEAD = struct.Struct("=BBxBi")  # struct ifaddrmsg: family, prefixlen, scope, index
# struct rtmsg: family, length of the destination, table, type.
_ROUTE_HEAD = struct.Struct("=BBxxBxxBxxxx")
_NEXTHOP = struct.Struct("=Hxxi")  # struct rtnexthop: length and interface
# enum of linux/if_link.h.
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_LINK_NETNSID, _IFLA_INFO_KIND = 16, 18, 37, 1
# IF_OPER_* of linux/if.h, in the words of ip(8).
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_MULTIPATH, _RTA_TABLE = 4, 9, 15
_SCOPE_LINK = 253
_NUD_STALE = 4
_NTF_USE = 1


def rtnetlink() -> Any:
    """A pyroute2.IPRoute."""
    # Imported here: it is a seventh of what an agent imports, and few need it.
    from pyroute2 import IPRoute

    return IPRoute()


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
    mac: bytes = b""
    mtu: int = 0


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
    state of each; `gone` the indices of those deleted. `addresses` leave out link-local ones of
    IPv6. After `lost` (the kernel dropped messages) only a new `read_network` tells."""

    links: tuple[Link, ...]
    gone: frozenset[int]
    addresses: bool
    routes: bool
    lost: bool


def read_network() -> Network:
    """Links, addresses and default routes of the calling thread's network namespace. Raises
    KernelError."""
    routes = _dumped(_GETROUTE, _ROUTE_HEAD.size)
    return Network(
        tuple(links()),
        tuple(filter(None, map(_address, _dumped(_GETADDR, _ADDRESS_HEAD.size)))),
        tuple(dict.fromkeys(r for message in routes for r in _default_routes(message))),
    )


def links() -> list[Link]:
    """The interfaces alone. Raises KernelError."""
    return [_link(message) for message in _dumped(_GETLINK, _LINK_HEAD.size)]


def _dumped(kind: int, head: int) -> list[bytes]:
    """All messages of this kind, of every address family; `head` bytes come before attributes."""
    return dump.ask(dump.NETLINK_ROUTE, kind, bytes(head))


def transmitted(ifindex: int) -> int:
    """Frames that an interface has sent, by its own count. Raises OSError."""
    with rtnetlink() as netlink:
        for message in netlink.get_links(ifindex):
            return int(message.get_attr("IFLA_STATS64")["tx_packets"])
    raise OSError(errno.ENODEV, f"no interface {ifindex}")


def interface_to(address: IPAddress) -> str:
    """By which interface packets to an address leave; empty if there is no way there."""
    from pyroute2.netlink.exceptions import NetlinkError

    with rtnetlink() as netlink:
        try:
            (route, *_) = netlink.route("get", dst=str(address))
        except NetlinkError:
            return ""
        index = route.get_attr("RTA_OIF")
        names = [link.get_attr("IFLA_IFNAME") for link in netlink.get_links(index)]
        return str(names[0]) if names else ""


def ask_again(ifindex: int, most: int) -> int:
    """Have the kernel ask neighbours on an interface whether they are still there, of those it has
    not heard of for a while; returns how many. What XDP sends does not tell it that they are used.
    Raises OSError."""
    with rtnetlink() as netlink:
        stale = [
            message
            for message in netlink.get_neighbours(ifindex=ifindex)
            if message["state"] & _NUD_STALE and message["ifindex"] == ifindex
        ][:most]
        for message in stale:
            netlink.neigh(
                "change",
                family=message["family"],
                dst=message.get_attr("NDA_DST"),
                ifindex=ifindex,
                flags=_NTF_USE,
                state=0,
            )
        return len(stale)


class Watch:
    """A subscription to changes. `fileno()` is readable when there are some; `read` never waits."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, _GROUPS))
        self._links: dict[int, bytes] = {}  # the last message about each that was not given out

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def waiting(self) -> bool:
        """Whether `read` has left links for the next time."""
        return bool(self._links)

    def read(self, most: int | None = None) -> Changes:
        """Everything that is waiting, as one batch (empty if nothing is); of links the newest if
        there are more than `most`, as taking one apart costs far more than receiving it."""
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
            for kind, _, message in dump.messages(data):
                if kind in (_NEWLINK, _DELLINK):
                    self._take_link(kind, message, gone)
                elif kind in (_NEWADDR, _DELADDR):
                    addresses = addresses or not _is_link_local(message)
                elif kind in (_NEWROUTE, _DELROUTE):
                    routes = routes or bool(_default_routes(message))
        return Changes(self._newest(most), frozenset(gone), addresses, routes, lost)

    def close(self) -> None:
        self._socket.close()

    def _take_link(self, kind: int, message: bytes, gone: set[int]) -> None:
        family, _, index, _ = _LINK_HEAD.unpack_from(message)
        # A bridge reports its ports in a family of its own, with few attributes.
        if family != socket.AF_UNSPEC:
            return
        self._links.pop(index, None)
        if kind == _NEWLINK:
            self._links[index] = message
            gone.discard(index)
        else:
            gone.add(index)

    def _newest(self, most: int | None) -> tuple[Link, ...]:
        count = len(self._links) if most is None else min(most, len(self._links))
        found = [self._links.popitem()[1] for _ in range(count)]
        found.reverse()
        return tuple(map(_link, found))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_link_local(message: bytes) -> bool:
    """Every interface gets such an address of IPv6 by itself, and it says nothing."""
    family, scope = message[0], message[3]
    return family == socket.AF_INET6 and scope == _SCOPE_LINK


def _link(message: bytes) -> Link:
    _, hardware, index, flags = _LINK_HEAD.unpack_from(message)
    found = dump.attributes(message, _LINK_HEAD.size)
    info = dump.attributes(found.get(_IFLA_LINKINFO, b""))
    state = found.get(_IFLA_OPERSTATE, b"\0")[0]
    netns = found.get(_IFLA_LINK_NETNSID)
    return Link(
        ifindex=index,
        ifname=dump.text(found.get(_IFLA_IFNAME, b"")),
        kind=dump.text(info.get(_IFLA_INFO_KIND, b"")),
        operstate=_OPERSTATES[state] if state < len(_OPERSTATES) else "",
        up=bool(flags & _IFF_UP),
        loopback=bool(flags & _IFF_LOOPBACK),
        master=_number(found.get(_IFLA_MASTER)),
        peer=_number(found.get(_IFLA_LINK)),
        peer_netns=None if netns is None else int.from_bytes(netns, sys.byteorder, signed=True),
        bare=hardware not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
        mac=found.get(_IFLA_ADDRESS, b""),
        mtu=_number(found.get(_IFLA_MTU)),
    )


def _address(message: bytes) -> Address | None:
    _, prefixlen, scope, index = _ADDRESS_HEAD.unpack_from(message)
    found = dump.attributes(message, _ADDRESS_HEAD.size)
    # On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has no IFA_LOCAL without a peer.
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    return Address(index, ipaddress.ip_address(raw), prefixlen, scope) if raw else None


def _default_routes(message: bytes) -> Sequence[Route]:
    family, length, table, kind = _ROUTE_HEAD.unpack_from(message)
    # A table of a million routes is dumped whole: most need no more looking than this.
    if length or kind != _ROUTE_UNICAST or family not in (socket.AF_INET, socket.AF_INET6):
        return ()
    found = dump.attributes(message, _ROUTE_HEAD.size)
    if (_number(found.get(_RTA_TABLE)) or table) != _TABLE_MAIN:
        return ()
    indices = [_number(found.get(_RTA_OIF)), *_nexthops(found.get(_RTA_MULTIPATH, b""))]
    return [Route(index, 4 if family == socket.AF_INET else 6) for index in indices if index]


def _nexthops(data: bytes) -> Iterator[int]:
    """The interface of each."""
    at = 0
    while at + _NEXTHOP.size <= len(data):
        length, index = _NEXTHOP.unpack_from(data, at)
        if length < _NEXTHOP.size:
            return
        yield index
        at += (length + 3) & ~3


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", sys.byteorder)
