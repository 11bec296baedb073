"""One request of each kind. Each raises OSError (or a subclass that tells the kind) if it fails."""

from __future__ import annotations

import itertools
import os
import socket
import zlib
from collections.abc import Callable
from typing import BinaryIO

from lbctl.lab.traffic import dns
from lbctl.lab.traffic.report import Answer, WrongAnswer
from lbctl.lab.traffic.servers import ECHO, checksum, pattern, plain, read_headers

Target = tuple[str, int]
_numbers = itertools.count(os.getpid() * 7919)  # DNS ids: distinct within and between clients


def parse_target(text: str) -> Target:
    """ADDRESS:PORT, with an IPv6 address in brackets."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


class HttpConnection:
    """One TCP connection to a server of ours."""

    def __init__(self, target: Target, timeout: float) -> None:
        self._socket = socket.create_connection(target, timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream: BinaryIO = self._socket.makefile("rb")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def get(self, path: str, *, last: bool = False) -> tuple[Answer, list[bytes]]:
        """Ask for `path`; returns who answered, and the body."""
        connection = "close" if last else "keep-alive"
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: {connection}\r\n\r\n".encode()
        )
        answer, body, heard = self._read()
        if heard != path:
            raise WrongAnswer(f"asked for {path}, got {heard}")
        return answer, body

    def post(self, pieces: list[bytes]) -> tuple[Answer, int]:
        """Send a body; returns who answered, and the checksum it computed."""
        length = sum(map(len, pieces))
        self._socket.sendall(
            f"POST /bulk HTTP/1.1\r\nHost: lab\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        for piece in pieces:
            self._socket.sendall(piece)
        answer, body, _ = self._read()
        return answer, int(b"".join(body))

    def _read(self) -> tuple[Answer, list[bytes], str]:
        status = self._stream.readline(8192)
        if not status:
            raise ConnectionResetError("closed without an answer")
        if not status.startswith(b"HTTP/1.1 200 "):
            raise WrongAnswer(f"not our server: {status!r}")
        headers = read_headers(self._stream)
        length = int(headers.get("content-length", "0"))
        body: list[bytes] = []
        while length:
            piece = self._stream.read(min(length, 65536))
            if not piece:
                raise ConnectionResetError("the body ended early")
            body.append(piece)
            length -= len(piece)
        answer = Answer(headers.get("x-server", ""), headers.get("x-client", ""))
        return answer, body, headers.get("x-path", "")


def http_once(target: Target, timeout: float) -> Answer:
    """One request over a new connection."""
    connection = HttpConnection(target, timeout)
    try:
        return connection.get("/", last=True)[0]
    finally:
        connection.close()


def http_keeping(target: Target, timeout: float) -> Callable[[int], Answer]:
    """A function that makes one request after another over the same connection.

    The answer must repeat the request's number and come from the server that gave the first. After
    a failure the next call opens a new connection.
    """
    kept: list[HttpConnection] = []
    servers: list[str] = []

    def request(number: int) -> Answer:
        try:
            if not kept:
                kept.append(HttpConnection(target, timeout))
                servers.clear()
            answer = kept[0].get(f"/{number}")[0]
            servers.append(answer.server)
            if answer.server != servers[0]:
                raise WrongAnswer(f"the connection moved from {servers[0]} to {answer.server}")
        except OSError:
            for connection in kept:
                connection.close()
            kept.clear()
            raise
        return answer

    return request


def bulk(target: Target, timeout: float, size: int) -> Answer:
    """Send `size` bytes and fetch `size` bytes over one connection, comparing checksums."""
    pieces = pattern(size)
    expected = checksum(pieces)
    connection = HttpConnection(target, timeout)
    try:
        answer, got = connection.post(pieces)
        if got != expected:
            raise WrongAnswer(f"{size} bytes sent: checksum {got:#x}, not {expected:#x}")
        _, body = connection.get(f"/bulk/{size}", last=True)
        if checksum(body) != expected:
            raise WrongAnswer(f"{size} bytes received: wrong checksum")
        return answer
    finally:
        connection.close()


def udp_socket(target: Target, timeout: float) -> socket.socket:
    """A connected socket: answers from anywhere else than the target are not heard."""
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.settimeout(timeout)
    client.connect(target)
    return client


def dns_query(client: socket.socket, name: str) -> Answer:
    """One TXT query over `client`, sent once: a lost packet is a lost request."""
    ident = next(_numbers) & 0xFFFF
    client.send(dns.query(ident, name))
    while True:
        found = dns.text(client.recv(4096), ident)
        if found is not None:  # else a late answer to an earlier query
            return Answer(found)


def udp_echo(client: socket.socket, size: int) -> Answer:
    """Send a datagram of `size` bytes and compare what comes back."""
    number = next(_numbers)
    head = ECHO + f"{number:d} ".encode()
    sent = head + b"".join(pattern(max(0, size - len(head))))
    client.send(sent)
    while True:
        server, _, got = client.recv(65535).partition(b" ")
        if got == sent:
            return Answer(server.decode("ascii", "replace"), plain(client.getsockname()[0]))
        if got.startswith(head):
            raise WrongAnswer(f"{size} bytes echoed differently: crc {zlib.crc32(got):#x}")
