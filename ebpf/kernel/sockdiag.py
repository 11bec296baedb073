"""Finding sockets by their kernel cookies, and closing them: sock_diag over netlink, by hand."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import KernelError, LbError, MissingFeature

TCP: Final = socket.IPPROTO_TCP
UDP: Final = socket.IPPROTO_UDP

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST_V2 = struct.Struct("=BBBBI")  # family, protocol, extensions, padding, states; then the id
_ID_BYTES = 48  # struct inet_diag_sockid
_ID_AT = 4  # of struct inet_diag_msg
_ID = struct.Struct("=2s2s16s16sIQ")  # ports, addresses, interface, cookie
_MAPPED = bytes(10) + b"\xff\xff"
# Of TCP all states of a socket with peer and owner; a connected UDP socket is ESTABLISHED.
_STATES: Final = {TCP: sum(1 << n for n in (1, 2, 3, 4, 5, 8, 9, 11)), UDP: 1 << 1}
NAMES: Final = {TCP: "TCP", UDP: "UDP"}
_ANSWER_SECONDS = 5.0
_CLONE_NEWNET = 0x40000000
_NO_DESTROY = (
    "Sockets connected to an endpoint that is gone find out by themselves, by a timeout. A kernel "
    "with CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG closes them."
)


class Target(msgspec.Struct, frozen=True):
    """A socket that is connected to `address` (16 bytes) and `port` (2, network order)."""

    cookie: int
    address: bytes
    port: bytes


class Diag:
    """A netlink socket of the calling thread's network namespace. Calls raise KernelError."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        except OSError as error:
            raise KernelError("cannot ask for sockets", error.errno or 0) from error
        self._socket.settimeout(_ANSWER_SECONDS)

    def __enter__(self) -> "Diag":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def close_sockets(self, protocol: int, targets: Collection[Target]) -> list[Target]:
        """Closes those of `targets` that exist here; returns them. Their owners see ECONNABORTED,
        a TCP peer a reset. Raises MissingFeature where the kernel cannot."""
        wanted = {(t.cookie, t.address, t.port): t for t in targets}
        closed = []
        for family in (socket.AF_INET, socket.AF_INET6):
            for raw in list(self.connected(family, protocol)):
                _, port, _, address, _, cookie = _ID.unpack(raw)
                wide = _MAPPED + address[:4] if family == socket.AF_INET else address
                found = wanted.get((cookie, wide, port))
                if found and self.destroy(family, protocol, raw):
                    closed.append(found)
        return closed

    def destroy(self, family: int, protocol: int, raw_id: bytes) -> bool:
        """Closes the socket with this struct inet_diag_sockid; False if there is none any more."""
        self._send(_SOCK_DESTROY, _REQUEST | _ACK, family, protocol, raw_id)
        for _ in self._answers(_SOCK_DESTROY, protocol):
            continue
        return self._last_error == 0

    def connected(self, family: int, protocol: int) -> Iterator[bytes]:
        """Ids of the sockets that have a peer."""
        self._send(_SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, family, protocol, bytes(_ID_BYTES))
        for payload in self._answers(_SOCK_DIAG_BY_FAMILY, protocol):
            if payload[0] == family:
                yield payload[_ID_AT : _ID_AT + _ID_BYTES]

    def _send(self, kind: int, flags: int, family: int, protocol: int, raw_id: bytes) -> None:
        request = _REQUEST_V2.pack(family, protocol, 0, 0, _STATES[protocol]) + raw_id
        self._last_error = 0
        try:
            self._socket.send(
                _HEADER.pack(_HEADER.size + len(request), kind, flags, 1, 0) + request
            )
        except OSError as error:
            raise KernelError("cannot ask for sockets", error.errno or 0) from error

    def _answers(self, kind: int, protocol: int) -> Iterator[bytes]:
        """Payloads until the kernel is done; what it says at the end is in `_last_error`."""
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise KernelError("no answer about sockets", error.errno or 0) from error
            at = 0
            while at < len(data):
                length, message, _, _, _ = _HEADER.unpack_from(data, at)
                payload = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if message in (_ERROR, _DONE):
                    (number,) = struct.unpack_from("=i", payload) if len(payload) >= 4 else (0,)
                    self._ended(kind, protocol, -number)
                    return
                yield payload

    def _ended(self, kind: int, protocol: int, number: int) -> None:
        self._last_error = number
        gone = (errno.ENOENT, errno.ESTALE)
        if number == 0 or (kind == _SOCK_DESTROY and number in gone):
            return
        name = NAMES[protocol]
        if number in (errno.EOPNOTSUPP, *gone):
            what = "close" if kind == _SOCK_DESTROY else "list"
            raise MissingFeature(f"this kernel does not {what} {name} sockets", _NO_DESTROY)
        raise KernelError(f"cannot list or close {name} sockets", number)


def close_everywhere(
    stale: Mapping[int, Collection[Target]], namespaces: Collection[Path]
) -> tuple[dict[int, list[Target]], list[LbError]]:
    """`Diag.close_sockets` by protocol, here and in other network namespaces until all are found.

    Returns what was closed, and what went wrong. The calling thread ends up in one of the others:
    call it in a thread of its own, or without any.
    """
    left = {protocol: set(targets) for protocol, targets in stale.items()}
    closed: dict[int, list[Target]] = {protocol: [] for protocol in stale}
    errors: list[LbError] = []
    for place in (None, *namespaces):
        if not any(left.values()):
            break
        try:
            if place is not None and not _enter(place):
                continue
        except KernelError as error:  # so it would be with the others
            errors.append(error)
            break
        for protocol, targets in left.items():
            try:
                with Diag() as diag:
                    done = diag.close_sockets(protocol, targets) if targets else []
            except LbError as error:
                errors.append(error)
                targets.clear()
                continue
            targets.difference_update(done)
            closed[protocol] += done
    return closed, errors


def other_namespaces(proc: Path = Path("/proc"), named: Path = Path("/run/netns")) -> list[Path]:
    """A path to each network namespace but the caller's own: of processes seen here, and named."""
    known = {_identity(proc / "thread-self" / "ns" / "net"), None}
    found = []
    places = [path / "ns" / "net" for path in proc.iterdir() if path.name.isdecimal()]
    if named.is_dir():
        places += sorted(named.iterdir())
    for path in places:
        identity = _identity(path)
        if identity not in known:
            known.add(identity)
            found.append(path)
    return found


def can_destroy(protocol: int) -> bool:
    """Whether the kernel closes sockets of this protocol on request. Raises KernelError."""
    nobody = _ID.pack(b"\0\1", b"\0\1", bytes(16), bytes(16), 0, 1)  # port 1 to port 1 of 0.0.0.0
    with Diag() as diag:
        try:
            next(diag.connected(socket.AF_INET, protocol), None)
        except MissingFeature:
            return False
    with Diag() as diag:
        try:
            diag.destroy(socket.AF_INET, protocol, nobody)
        except MissingFeature:
            return False
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """None for a process that is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _enter(place: Path) -> bool:
    """Moves the calling thread into a network namespace; False if that has gone. Raises KernelError
    where entering is not allowed."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        failed: int = ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET)
        if failed and ctypes.get_errno() == errno.EPERM:
            hint = "Sockets in there are not closed. Entering one needs CAP_SYS_ADMIN."
            raise KernelError("cannot enter another network namespace", errno.EPERM, hint)
        return not failed
    finally:
        os.close(descriptor)
