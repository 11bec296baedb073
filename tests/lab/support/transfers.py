"""Transfers of more than fits into a packet, and what a socket hears of the way."""

from __future__ import annotations

import hashlib
import socket
import threading

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
