"""Servers and clients that open and end connections in every way, as processes to be killed.

`python -m tests.lab.support.churn serve PORT`, or `... call COUNT HOLD ADDRESS PORT...`: a client
ends most of COUNT connections at once, keeps HOLD of them until it is killed, and says on standard
output how many were served.
"""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import sys
from collections.abc import Iterator

from tests.lab.support.labs import FAMILIES, set_linger

ANSWER = b"k"
MUCH = ANSWER * 4000
SECONDS = 3.0  # until something is lost
# A reset is sent once: who does not get it finds out by asking.
KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2),
)
# What a client asks for: an answer; one and the end; a reset; more than is read.
STAY, END, RESET, FLOOD = b"s", b"e", b"r", b"f"


def serve(port: int) -> None:
    """Without end, both families and protocols."""
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.listen(4096)
    datagrams = [socket.socket(family, socket.SOCK_DGRAM) for family in FAMILIES]
    datagrams[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, _accept)
    for sock, address in zip(datagrams, ("0.0.0.0", "::"), strict=True):
        sock.bind((address, port))
        selector.register(sock, selectors.EVENT_READ, _answer_datagram)
    print("serving", flush=True)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            with contextlib.suppress(OSError):
                key.data(selector, key.fileobj)


def _accept(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    for level, option, value in KEEP_ALIVE:
        connection.setsockopt(level, option, value)
    selector.register(connection, selectors.EVENT_READ, _answer)


def _answer(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    asked = b""
    with contextlib.suppress(OSError):
        asked = connection.recv(1)
        if asked == RESET:
            set_linger(connection)
        elif asked:
            connection.sendall(MUCH if asked == FLOOD else ANSWER)
    if asked not in (STAY, FLOOD):
        selector.unregister(connection)
        connection.close()


def _answer_datagram(selector: selectors.BaseSelector, sock: socket.socket) -> None:
    data, peer = sock.recvfrom(100)
    sock.sendto(data, peer)


Address = tuple[str, int]


def close(sock: socket.socket) -> None:
    ask(sock, STAY)


def close_second(sock: socket.socket) -> None:
    ask(sock, END)
    assert sock.recv(1) == b""


def reset(sock: socket.socket) -> None:
    ask(sock, STAY)
    set_linger(sock)


def be_reset(sock: socket.socket) -> None:
    sock.sendall(RESET)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def leave_unread(sock: socket.socket) -> None:
    """Which the kernel answers with a reset."""
    ask(sock, FLOOD)


def shut_down(sock: socket.socket) -> None:
    ask(sock, STAY)
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""


def ask(sock: socket.socket, what: bytes) -> None:
    sock.sendall(what)
    if not sock.recv(1):
        raise ConnectionResetError("closed without an answer")


ENDINGS = (close, close_second, reset, be_reset, leave_unread, shut_down)


@contextlib.contextmanager
def connected(address: Address, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind) as sock:
        sock.settimeout(SECONDS)
        sock.connect(address)
        yield sock


class Caller:
    """A client that keeps some of its connections."""

    def __init__(self) -> None:
        self.served = 0
        self._kept = selectors.DefaultSelector()

    def call(self, address: Address, number: int) -> None:
        """Any of a hundred kinds of failure is one connection that was not served."""
        with contextlib.suppress(OSError):
            if number % 10 == 9:
                with connected(address, socket.SOCK_DGRAM) as sock:
                    ask(sock, STAY)
            else:
                with connected(address) as sock:
                    ENDINGS[number % len(ENDINGS)](sock)
            self.served += 1

    def keep(self, address: Address) -> None:
        with contextlib.suppress(OSError), connected(address) as sock:
            ask(sock, STAY)
            kept = socket.socket(fileno=sock.detach())
            self._kept.register(kept, selectors.EVENT_READ)

    def let_go(self, seconds: float | None) -> None:
        """Close those that their server has ended."""
        for key, _ in self._kept.select(seconds):
            self._kept.unregister(key.fileobj)
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()


def call(count: int, hold: int, addresses: list[Address]) -> None:
    caller, turn = Caller(), itertools.cycle(addresses)
    for number in range(count):
        address = next(turn)
        caller.call(address, number)
        if hold and number % max(1, count // hold) == 0:
            caller.keep(address)
            caller.let_go(0)
    print(caller.served, flush=True)
    while True:
        caller.let_go(None if hold else SECONDS)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "serve":
        serve(int(rest[0]))
    else:
        ends = list(zip(rest[2::2], map(int, rest[3::2]), strict=True))
        call(int(rest[0]), int(rest[1]), ends)
