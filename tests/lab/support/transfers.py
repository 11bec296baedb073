"""Transfers of more than fits into a packet, and what a socket hears of the way."""

from __future__ import annotations

import errno
import hashlib
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest

from lbctl.lab.cluster import Lab
from tests.lab.support.labs import (
    FAMILIES,
    TIMEOUT,
    Reply,
    ask,
)

SMALL_MTU = 1300
SIZE = 3_000_000
# IP_MTU and IPV6_MTU (linux/in.h, in6.h): what a connected socket knows of the way.
MTU_KNOWN = ((socket.SOL_IP, 14), (socket.IPPROTO_IPV6, 24))


def content(seed: str, size: int = SIZE) -> bytes:
    """Bytes in which every part differs from every other."""
    return hashlib.shake_128(seed.encode()).digest(size)


class Exchange(threading.Thread):
    """A server that takes SIZE bytes over one connection and then sends as many of its own."""

    def __init__(self, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.got = b""
        self.mtu = 0

    def run(self) -> None:
        family = FAMILIES.index(self._server.family)
        self._server.settimeout(TIMEOUT)
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            self.got = read(connection)
            connection.sendall(content("down"))
            self.mtu = connection.getsockopt(*MTU_KNOWN[family])
            connection.recv(1)


def read(sock: socket.socket, size: int = SIZE) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := sock.recv(min(1 << 16, size - len(data)))):
        data += piece
    return bytes(data)


def text_of(number: int, size: int) -> str:
    return f"{number:09}" + content(str(number), size // 2).hex()[: size - 9]


def echoed(sock: socket.socket, text: str) -> Reply:
    """Like `ask`, also for what is too long to compare by eye."""
    reply = ask(sock, text)
    assert len(reply.text) == len(text)
    return reply


def learn_size(sock: socket.socket, size: int) -> None:
    """Send datagrams of this size until one is answered: the first ones are lost to "packet too
    big", which each sender must hear of."""
    sock.settimeout(0.3)
    for number in range(10):
        try:
            echoed(sock, text_of(number, size))
            break
        except TimeoutError:
            continue
        except OSError as error:
            if error.errno != errno.EMSGSIZE:  # how a socket that asks hears of it
                raise
    sock.settimeout(TIMEOUT)


def flush_routes(lab: Lab, members: Iterable[str]) -> None:
    """What these know of sizes on the way is forgotten."""
    for member in members:
        for family in ("-4", "-6"):
            lab.exec(member, ["ip", family, "route", "flush", "cache"], check=True)


NARROW = ("nowhere", "between-nodes", "at-the-backend", "at-the-client")


@contextmanager
def narrower(lab: Lab, where: str, backend: str, answering: str) -> Iterator[None]:
    """Less fits through one of NARROW than both ends believe, and nobody knows it yet: between the
    client `outside`, which calls node1, and `backend` on node2. `answering` is the node from which
    answers go to the client."""
    flush_routes(lab, ("outside", "node1", "node2", backend))
    _change_routes(lab, where, backend, answering, ["mtu", str(SMALL_MTU)])
    yield
    _change_routes(lab, where, backend, answering, [])


def _change_routes(
    lab: Lab, where: str, backend: str, answering: str, attributes: list[str]
) -> None:
    """Forwarding goes by the route's MTU. A link's own would make its peer drop in silence."""
    ways: list[tuple[str, str, list[str]]] = []
    if where == "between-nodes":
        pods, node2 = lab.node("node2").pod_cidrs, lab.node("node2").addresses
        ways += [("node1", c, ["via", g]) for c, g in zip(pods, node2, strict=True)]
        if answering == "node1":
            ways += [("node2", address, ["dev", "eth0"]) for address in lab.node("node1").addresses]
    if where == "at-the-backend":
        pod = lab.find(backend)
        ways += [("node2", address, ["dev", "veth2"]) for address in pod.addresses]
    if where == "at-the-client":
        ways += [(answering, address, ["dev", "eth0"]) for address in lab.outside.addresses]
    for node, destination, way in ways:
        lab.exec(node, ["ip", "route", "replace", destination, *way, *attributes], check=True)


def assert_backend_hears_of_the_end(server: socket.socket, sock: socket.socket) -> str:
    """A datagram each way between `sock`, a client, and its backend; then the client is gone.

    Returns the client's address, as the backend sees it."""
    with sock:
        sock.send(b"hello")
        _, peer = server.recvfrom(1000)
        server.connect(peer)
        server.send(b"welcome")
        assert sock.recv(1000) == b"welcome"
    server.send(b"still there?")
    with pytest.raises(ConnectionRefusedError):
        server.recv(1000)
    return str(peer[0])
