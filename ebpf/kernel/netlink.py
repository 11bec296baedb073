"""Interfaces, their addresses and default routes, and following their changes."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
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
_NEWLINK, _DELLINK = 16, 17
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE = 24, 25
_HEADER = struct.Struct("=IH10x")  # struct nlmsghdr: length and type
_LINK_HEAD = struct.Struct("=Bxxxi")  # struct ifinfomsg: family and index
_SCOPE_LINK = 253
_NUD_STALE = 4
_NTF_USE = 1


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


def transmitted(ifindex: int) -> int:
    """Frames that an interface has sent, by its own count. Raises OSError."""
    with IPRoute() as netlink:
        for message in netlink.get_links(ifindex):
            return int(message.get_attr("IFLA_STATS64")["tx_packets"])
    raise OSError(errno.ENODEV, f"no interface {ifindex}")


def interface_to(address: IPAddress) -> str:
    """By which interface packets to an address leave; empty if there is no way there."""
    with IPRoute() as netlink:
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
    with IPRoute() as netlink:
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
        self._marshal = MarshalRtnl()
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
            for kind, message in _messages(data):
                if kind in (_NEWLINK, _DELLINK):
                    self._take_link(kind, message, gone)
                elif kind in (_NEWADDR, _DELADDR):
                    addresses = addresses or not _is_link_local(message)
                elif kind in (_NEWROUTE, _DELROUTE):
                    routes = routes or self._is_default_route(message)
        return Changes(self._newest(most), frozenset(gone), addresses, routes, lost)

    def close(self) -> None:
        self._socket.close()

    def _take_link(self, kind: int, message: bytes, gone: set[int]) -> None:
        family, index = _LINK_HEAD.unpack_from(message, _HEADER.size)
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
        return tuple(_link(parsed) for raw in found for parsed in self._marshal.parse(raw))

    def _is_default_route(self, message: bytes) -> bool:
        if message[_HEADER.size + 1]:  # the length of its destination: most need no more looking
            return False
        return any(_default_routes(parsed) for parsed in self._marshal.parse(message))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


def _is_link_local(message: bytes) -> bool:
    """Every interface gets such an address of IPv6 by itself, and it says nothing."""
    family, scope = message[_HEADER.size], message[_HEADER.size + 3]
    return family == socket.AF_INET6 and scope == _SCOPE_LINK


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
        mac=bytes.fromhex((message.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        mtu=message.get_attr("IFLA_MTU") or 0,
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
