"""Sockets of a test inside a lab's namespaces, and one server thread that answers for all pods.

A socket belongs to the namespace it was made in, whoever uses it later: so one test process can be
every client and every server at once, and knows exactly what each of them saw.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from lbctl.inspect.opened import open_instance
from lbctl.lab import namespace
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.topology import Node, Pod
from lbctl.lab.traffic.servers import plain

PORT = 80  # of every service
TARGET = 7000  # of every server
FAMILIES = (socket.AF_INET, socket.AF_INET6)
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
TIMEOUT = 5.0  # seconds until something is lost

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What a server said: its name, the client as it saw it, which of its connections this is (0
    for datagrams), and the text it was sent."""

    server: str
    client: str
    port: int
    connection: int
    text: str


def parse(line: bytes) -> Reply:
    server, client, port, connection, text = line.decode().rstrip("\n").split(" ", 4)
    return Reply(server, client, int(port), int(connection), text)


class Responder:
    """Servers in any number of namespaces, TCP and UDP, served by one thread.

    A line over TCP, or a datagram, is answered with a `Reply` as one line. The lines "bye" (after
    the answer) and "reset" end the connection from this side.
    """

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []  # server, text
        self._selector = selectors.DefaultSelector()
        self._serial = 0
        self._stop, other = socket.socketpair()
        self._selector.register(other, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def serve(self, lab: Lab, members: Iterable[str], port: int = TARGET) -> None:
        """Start a server of each protocol on each address of each member."""
        for member in members:
            for address in lab.find(member).addresses:
                for kind in (TCP, UDP):
                    self.listen_at(lab, member, address, port, kind, member)

    def listen_at(
        self, lab: Lab, member: str, address: str, port: int, kind: socket.SocketKind, name: str
    ) -> None:
        """Start one server, which answers as `name`."""
        server = listen(lab, member, address, port, kind)
        self._add(server, self._accept if kind == TCP else self._datagram, name)

    def _add(
        self, sock: socket.socket, handle: Callable[[socket.socket, str], None], name: str
    ) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, (handle, name))

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                handle, name = key.data
                with contextlib.suppress(OSError):  # nothing to read after all, or nobody there
                    handle(key.fileobj, name)

    def _accept(self, server: socket.socket, name: str) -> None:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._serial += 1
        serial = self._serial
        peer = connection.getpeername()
        client = f"{name} {plain(peer[0])} {peer[1]} {serial} ".encode()
        self._add(connection, lambda sock, _: self._lines(sock, name, client), name)

    def _lines(self, connection: socket.socket, name: str, client: bytes) -> None:
        ended = True
        with contextlib.suppress(ConnectionError):
            data = connection.recv(65536)
            ended = not data
            for line in data.splitlines():
                self.heard.append((name, line.decode()))
                if line == b"reset":
                    set_linger(connection)
                else:
                    connection.sendall(client + line + b"\n")
                ended = line in (b"bye", b"reset")
        if ended:
            self._selector.unregister(connection)
            connection.close()

    def _datagram(self, server: socket.socket, name: str) -> None:
        # An answer to a client that is gone, or to whom no route leads: forged sources do that.
        with contextlib.suppress(OSError):
            data, peer = server.recvfrom(65535)
            self.heard.append((name, data[:80].decode(errors="replace")))
            server.sendto(f"{name} {plain(peer[0])} {peer[1]} 0 ".encode() + data, peer)


def set_linger(sock: socket.socket) -> None:
    """Closing this socket sends a reset instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def inside(lab: Lab, member: str, function: Callable[[], T]) -> T:
    """Call `function` in a member's network namespace."""
    return namespace.run_in(lab.find(member).namespace, function)


def listen(
    lab: Lab, member: str, address: str, port: int, kind: socket.SocketKind
) -> socket.socket:
    """A server's socket on one address of a member."""

    def make() -> socket.socket:
        server = socket.socket(FAMILIES[":" in address], kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        if kind == TCP:
            server.listen(1024)
        return server

    return inside(lab, member, make)


def client(
    lab: Lab, member: str, family: int, kind: socket.SocketKind, port: int = 0
) -> socket.socket:
    """A client's socket in a member, with a time-out, bound to `port` if one is given."""
    return inside(lab, member, lambda: new_socket(family, kind, port))


def new_socket(family: int, kind: socket.SocketKind, port: int = 0) -> socket.socket:
    """The same in the namespace of this thread. Several may share a port."""
    made = socket.socket(FAMILIES[family], kind)
    made.settimeout(TIMEOUT)
    if kind == TCP:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if port:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("::" if family else "0.0.0.0", port))
    return made


@contextlib.contextmanager
def connected(
    lab: Lab,
    member: str,
    address: str,
    kind: socket.SocketKind,
    *,
    port: int = PORT,
    source: int = 0,
) -> Iterator[socket.socket]:
    """A socket in `member` that is connected to `address`."""
    with client(lab, member, int(":" in address), kind, source) as sock:
        sock.connect((address, port))
        yield sock


def ask(sock: socket.socket, text: str) -> Reply:
    """Send `text` over a connected socket and return the answer, which must be to this text.

    Late answers to earlier datagrams are passed over. Raises OSError when there is none.
    """
    sock.sendall(text.encode() + (b"\n" if sock.type == TCP else b""))
    while True:
        reply = parse(_line(sock) if sock.type == TCP else sock.recv(65535))
        if reply.text == text:
            return reply
        assert sock.type == UDP, f"asked {text!r}, got {reply}"


def _line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionResetError("closed without an answer")
        line += piece
    return line


def hear_back(sock: socket.socket, address: str, port: int) -> bytes:
    """Connect, say something once, and return what comes back."""
    sock.connect((address, port))
    sock.sendall(b"anyone there?")
    return sock.recv(1000)


# Services


def addresses(name: str) -> tuple[str, str]:
    """The cluster IPs of the lab's service `name`, by family."""
    ipv4, ipv6 = Lab.service(name, [Port(PORT)], [])[0]["spec"]["clusterIPs"]
    return ipv4, ipv6


def endpoint(lab: Lab, member: str) -> Pod:
    """A pod, or a process of the node itself as a pod with host network, as an endpoint."""
    found = lab.find(member)
    if isinstance(found, Pod):
        return found
    assert isinstance(found, Node)
    return Pod(member, found.namespace, found.addresses, member, 0, "")


PORTS = (Port(PORT, TARGET, "tcp"), Port(PORT, TARGET, "udp", "UDP"))


def publish(
    lab: Lab,
    services: Mapping[str, Iterable[str]],
    ports: Sequence[Port] = PORTS,
    nodes: Sequence[str] = (),
) -> None:
    """Make each service lead to the members named, and wait until it does."""
    wanted = {name: [endpoint(lab, m) for m in members] for name, members in services.items()}
    for name, endpoints in wanted.items():
        lab.apply(name, lab.service(name, ports, endpoints))
    for name, endpoints in wanted.items():
        lab.wait_programmed(f"default/{name}", endpoints, nodes)


def counted(lab: Lab, node: str, reason: str) -> int:
    """How many packets have met with this fate (bpf_src/consts.h, enum reason) on a node."""
    with open_instance(lab.pin_dir(node)) as instance:
        return int(instance.counters.read_sum()[instance.enums[f"REASON_{reason.upper()}"]])
