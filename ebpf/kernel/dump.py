"""Asking the kernel for lists over netlink, of any family: messages and their attributes as bytes.

pyroute2 knows rtnetlink's; this is for the rest, and for lists that are asked for every second.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final

from ebpf.errors import KernelError

NETLINK_ROUTE: Final = 0
NETLINK_XFRM: Final = 6
NETLINK_NETFILTER: Final = 12

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length and type
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _MULTI = 1, 0x300, 2
_DUMP_INTERRUPTED = 0x10
_KIND_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_ANSWER_SECONDS = 5.0
_TRIES = 5  # of a list that changes while it is read
# The kernel has nothing of this family, or not this list.
ABSENT: Final = frozenset(
    {errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EINVAL}
)


class Changing(KernelError):
    """A list changed each time that it was read."""


def ask(protocol: int, kind: int, payload: bytes, *, dump: bool = True) -> list[bytes]:
    """What follows the header in each message of the answer. Raises KernelError."""
    what = f"cannot ask the kernel for message {kind} of netlink family {protocol}"
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as s:
            s.settimeout(_ANSWER_SECONDS)
            for _ in range(_TRIES):
                length, flags = _HEADER.size + len(payload), _REQUEST | (_DUMP if dump else 0)
                s.send(_HEADER.pack(length, kind, flags, 1, 0) + payload)
                found = _answer(s, dump, what)
                if found is not None:
                    return found
    except OSError as error:
        raise KernelError(what, error.errno or errno.ETIMEDOUT) from error
    raise Changing(what, errno.EINTR)


def _answer(sock: socket.socket, dump: bool, what: str) -> list[bytes] | None:
    """None if the list changed meanwhile."""
    found: list[bytes] = []
    whole = True
    while True:
        for kind, flags, payload in messages(sock.recv(1 << 17)):
            whole = whole and not flags & _DUMP_INTERRUPTED
            if kind == _ERROR:
                (number,) = struct.unpack_from("=i", payload)
                if number:
                    raise KernelError(what, -number)
            if kind in (_DONE, _ERROR):
                return found if whole else None
            found.append(payload)
            if not dump:
                return found


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of each message in a datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """The attributes from an offset on, by their number; the last of each."""
    found = {}
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _KIND_MASK] = data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def text(raw: bytes) -> str:
    """An attribute that is a string, which ends with a zero byte."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def subscribe(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    """A socket, not blocking, that hears of the changes that these groups announce. Raises
    KernelError."""
    try:
        sock = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            protocol,
        )
    except OSError as error:
        raise KernelError(f"no netlink of family {protocol}", error.errno or 0) from error
    try:
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as error:
        sock.close()
        raise KernelError(
            f"cannot hear of changes of family {protocol}", error.errno or 0
        ) from error
    return sock


def drain(sock: socket.socket) -> tuple[list[tuple[int, bytes]], bool]:
    """What is waiting, as (type, payload), and whether the kernel had to drop some of it."""
    found: list[tuple[int, bytes]] = []
    lost = False
    while True:
        try:
            data = sock.recv(1 << 17)
        except BlockingIOError:
            return found, lost
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
            continue
        found += [(kind, payload) for kind, _, payload in messages(data)]
