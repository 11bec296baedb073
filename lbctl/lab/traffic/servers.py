"""Servers that say who they are: HTTP over TCP, DNS and an echo over UDP. Both families at once."""

from __future__ import annotations

import contextlib
import socket
import threading
import zlib
from typing import BinaryIO

from lbctl.lab.traffic import dns

IDLE_SECONDS = 600.0  # a connection that says nothing for so long is given up
ECHO = b"ECHO "
_BLOCK = bytes(range(256)) * 256


def pattern(total: int) -> list[bytes]:
    """The body of a bulk transfer of `total` bytes, in pieces."""
    whole, rest = divmod(total, len(_BLOCK))
    return [_BLOCK] * whole + ([_BLOCK[:rest]] if rest else [])


def checksum(pieces: list[bytes]) -> int:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value


def listen(kind: socket.SocketKind, port: int, address: str = "::") -> socket.socket:
    """A socket that hears both families, unless bound to one address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind((address, port))
    if kind == socket.SOCK_STREAM:
        server.listen(1024)
    return server


def serve_http(server: socket.socket, name: str) -> None:
    """Answer HTTP requests for ever; one thread per connection, connections are kept open."""
    while True:
        connection, _ = server.accept()
        threading.Thread(target=_serve_connection, args=(connection, name), daemon=True).start()


def _serve_connection(connection: socket.socket, name: str) -> None:
    with connection, contextlib.suppress(OSError, ValueError):
        connection.settimeout(IDLE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = plain(connection.getpeername()[0])
        with connection.makefile("rb") as stream:
            while _answer_request(connection, stream, name, client):
                pass


def _answer_request(connection: socket.socket, stream: BinaryIO, name: str, client: str) -> bool:
    """Answer one request; False when the connection is to be closed.

    GET /bulk/N sends N bytes, a request with a body gets the body's checksum, all others the name.
    """
    line = stream.readline(8192)
    if not line:
        return False
    path = line.split()[1].decode("ascii", "replace")
    headers = read_headers(stream)
    body = [f"{name}\n".encode()]
    length = int(headers.get("content-length", "0"))
    if length:
        body = [f"{_checksum_of(stream, length)}\n".encode()]
    elif path.startswith("/bulk/"):
        body = pattern(int(path.removeprefix("/bulk/")))
    close = headers.get("connection", "").lower() == "close"
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {sum(map(len, body))}\r\n"
        f"X-Server: {name}\r\nX-Client: {client}\r\nX-Path: {path}\r\n"
        f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n"
    ).encode()
    connection.sendall(head + body[0] if len(body) == 1 else head)
    for piece in body if len(body) > 1 else []:
        connection.sendall(piece)
    return not close


def _checksum_of(stream: BinaryIO, length: int) -> int:
    value = 0
    while length:
        piece = stream.read(min(length, len(_BLOCK)))
        if not piece:
            raise ConnectionResetError("the body ended early")
        value = zlib.crc32(piece, value)
        length -= len(piece)
    return value


def read_headers(stream: BinaryIO) -> dict[str, str]:
    """HTTP headers up to the empty line; names in lower case."""
    headers: dict[str, str] = {}
    while True:
        line = stream.readline(8192)
        if not line:
            raise ConnectionResetError("the headers ended early")
        if line in (b"\r\n", b"\n"):
            return headers
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.strip().lower()] = value.strip()


def serve_udp(server: socket.socket, name: str, address: str) -> None:
    """Answer DNS queries with this server's name or address, and echo what begins with ECHO."""
    while True:
        data, client = server.recvfrom(65535)
        if data.startswith(ECHO):
            reply: bytes | None = name.encode() + b" " + data
        else:
            reply = dns.answer(data, name, address)
        if reply is not None:
            with contextlib.suppress(OSError):  # the client may be gone
                server.sendto(reply, client)


def plain(address: str) -> str:
    """An IPv4 address as such also where it comes through a socket of both families."""
    return address.removeprefix("::ffff:")
