"""Traffic of somebody who has nothing to do with a fault: a program that runs in a member of a lab.

`python bystander_traffic.py JSON`, a list of [ADDRESS, PORT, [SERVER, ...]]. To each address it
keeps one TCP connection and one UDP socket, over which it sends numbered messages, and makes new
ones of both again and again. What is not answered, by one of these servers, with the same number
and over the same connection, is lost. A line on standard input is answered with what was made so
far, a line "lost" with what was lost since the last such line; the end of input ends the program.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading

TIMEOUT = 8.0
PAUSE = 0.1
SHOWN = 20  # of what was lost; the rest is counted
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

Target = tuple[str, int, list[str]]


class Tally:
    """What all threads have made and lost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.made = 0
        self.losses = 0
        self.shown: list[str] = []

    def add(self, loss: str | None) -> None:
        with self._lock:
            self.made += 1
            if loss is not None:
                self.losses += 1
                self.shown = [*self.shown, loss][:SHOWN]

    def progress(self) -> str:
        return json.dumps({"made": self.made})

    def take_losses(self) -> str:
        """What was lost since this was last asked."""
        with self._lock:
            said = {"lost": self.losses, "shown": self.shown}
            self.losses, self.shown = 0, []
        return json.dumps(said)


class Walker(threading.Thread):
    """Everything that goes to one address."""

    def __init__(self, target: Target, tally: Tally, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self._address, self._port, self._servers = target
        self._tally = tally
        self._enough = enough
        self._number = 0

    def run(self) -> None:
        held: dict[socket.SocketKind, socket.socket] = {}
        while not self._enough.wait(PAUSE):
            for kind in (TCP, UDP):
                self._try("held", held, kind)
                fresh: dict[socket.SocketKind, socket.socket] = {}
                self._try("new", fresh, kind)
                for sock in fresh.values():
                    sock.close()
        for sock in held.values():
            sock.close()

    def _try(
        self, what: str, known: dict[socket.SocketKind, socket.socket], kind: socket.SocketKind
    ) -> None:
        """One message; a socket that failed is not used again, and the next one is counted anew."""
        self._number += 1
        try:
            if kind not in known:
                known[kind] = self._connected(kind)
            self._ask(known[kind])
            self._tally.add(None)
        except (OSError, ValueError) as error:
            name = "TCP" if kind == TCP else "UDP"
            place = f"{name} {self._address} {self._port}"
            self._tally.add(f"{what} {place}, message {self._number}: {error!r}")
            if kind in known:
                known.pop(kind).close()

    def _connected(self, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        made = socket.socket(family, kind)
        with contextlib.ExitStack() as stack:
            stack.callback(made.close)
            made.settimeout(TIMEOUT)
            made.connect((self._address, self._port))
            if kind == TCP:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stack.pop_all()
        return made

    def _ask(self, sock: socket.socket) -> None:
        text = str(self._number)
        sock.sendall(text.encode() + (b"\n" if sock.type == TCP else b""))
        answer = b""
        while not answer or (sock.type == TCP and not answer.endswith(b"\n")):
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionResetError("the other end closed the connection")
            answer += piece
        words = answer.decode().split()
        if len(words) != 5 or words[4] != text or words[0] not in self._servers:
            raise ValueError(f"answered by {answer!r}, expected one of {self._servers}")


def main(targets: list[Target]) -> None:
    tally, enough = Tally(), threading.Event()
    walkers = [Walker(target, tally, enough) for target in targets]
    for walker in walkers:
        walker.start()
    for line in sys.stdin:
        print(tally.take_losses() if line == "lost\n" else tally.progress(), flush=True)
    enough.set()
    for walker in walkers:
        walker.join(2 * TIMEOUT)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
