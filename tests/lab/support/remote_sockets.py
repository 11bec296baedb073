"""Sockets of a process inside a lab's member, in its cgroup.

Socket hooks act by cgroup: those of the test's own process (lab_support.client) never meet them.

As a program: calls methods of sockets as JSON lines on standard input ask for it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lbctl.lab.cluster import Lab

TIMEOUT = 5.0


class RemoteSocket:
    """One socket over there. Methods are those of socket.socket; bytes are text here, addresses
    lists. Raises OSError as the call did."""

    def __init__(self, process: RemoteProcess, number: int) -> None:
        self._process = process
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._process.call(self._number, name, *arguments)

    def ask(self, text: str, *address: object) -> str:
        """Send a line or datagram and return who answered it, which is the first word."""
        if address:
            self.sendto(text, list(address))
        else:
            self.send(text + "\n")
        return str(self.recv(65535)).split(" ", 1)[0]


class RemoteProcess:
    """A process in a member of the lab, that has sockets for us."""

    def __init__(self, lab: Lab, member: str) -> None:
        self.member = member
        self._process = lab.popen(
            member, [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def open(self, kind: socket.SocketKind, family: int = 0, protocol: int = 0) -> RemoteSocket:
        """A new socket; `family` 0 is IPv4, 1 IPv6; `protocol` 0 the usual one of the kind."""
        return RemoteSocket(self, self.call(-1, "open", family, int(kind), protocol))

    def connect(
        self, kind: socket.SocketKind, address: str, port: int, family: int | None = None
    ) -> RemoteSocket:
        """A new socket that is connected."""
        made = self.open(kind, int(":" in address) if family is None else family)
        made.connect([address, port])
        return made

    def call(self, number: int, name: str, *arguments: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([number, name, arguments]) + "\n")
        self._process.stdin.flush()
        failed, answer = json.loads(self._process.stdout.readline())
        if failed:
            raise TimeoutError if failed < 0 else OSError(failed, answer)
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()


@contextmanager
def process_in(lab: Lab, member: str) -> Iterator[RemoteProcess]:
    """Ends with the block, and all its sockets with it."""
    made = RemoteProcess(lab, member)
    try:
        yield made
    finally:
        made.kill()


def main() -> None:
    sockets: dict[int, socket.socket] = {}
    for line in sys.stdin:
        number, name, arguments = json.loads(line)
        try:
            answer = _call(sockets, number, name, arguments)
            reply = [0, answer]
        except OSError as error:
            reply = [error.errno or -1, str(error)]
        print(json.dumps(reply), flush=True)


def _call(sockets: dict[int, socket.socket], number: int, name: str, arguments: list[Any]) -> Any:
    if number < 0:
        family, kind, protocol = arguments
        sock = socket.socket((socket.AF_INET, socket.AF_INET6)[family], kind, protocol)
        sock.settimeout(TIMEOUT)
        sockets[sock.fileno()] = sock
        return sock.fileno()
    if name == "close":
        sockets.pop(number).close()
        return None
    given = [_to_python(value, name) for value in arguments]
    return _to_json(getattr(sockets[number], name)(*given))


def _to_python(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return value.encode() if isinstance(value, str) and name.startswith("send") else value


def _to_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value


if __name__ == "__main__":
    main()
