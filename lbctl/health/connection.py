"""One HTTP connection: a request's head in, one answer out, closed. Never waits."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

from lbctl.health.answers import Answer, refusal

Handler = Callable[[str], Answer]  # from the path asked for

MAX_HEAD = 8192
_BLANK_LINE = b"\r\n\r\n"


class Connection:
    """Reads until the head is complete, writes the answer, then waits for the peer to close."""

    def __init__(self, sock: socket.socket, handler: Handler, deadline: float) -> None:
        """`deadline` is when the caller will give up on it, on the monotonic clock."""
        sock.setblocking(False)
        self.sock = sock
        self.deadline = deadline
        self._handler = handler
        self._received = bytearray()
        self._unsent = memoryview(b"")
        self._answered = False

    @property
    def events(self) -> int:
        """What to wait for."""
        return selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ

    def proceed(self) -> bool:
        """Do what can be done now. Returns False once it is over; `close` is the caller's."""
        try:
            if self._unsent:
                return self._write()
            return self._drain() if self._answered else self._read()
        except BlockingIOError:
            return True
        except OSError:  # the peer has gone, by whatever error
            return False

    def close(self) -> None:
        self.sock.close()

    def _read(self) -> bool:
        data = self.sock.recv(4096)
        if not data:
            return False
        self._received += data
        if _BLANK_LINE in self._received:
            head = bytes(self._received).partition(_BLANK_LINE)[0]
            return self._answer(*_question(head, self._handler))
        if len(self._received) > MAX_HEAD:
            return self._answer(refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), True)
        return True

    def _answer(self, answer: Answer, with_body: bool) -> bool:
        self._answered = True
        self._unsent = memoryview(encode(answer, with_body))
        return self._write()

    def _write(self) -> bool:
        self._unsent = self._unsent[self.sock.send(self._unsent) :]
        if not self._unsent:
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def _drain(self) -> bool:
        """Closing with unread data would reset the connection, and the answer might be lost."""
        return bool(self.sock.recv(4096))


def _question(head: bytes, handler: Handler) -> tuple[Answer, bool]:
    """The answer to a request, and whether its body is wanted."""
    words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        return refusal(HTTPStatus.BAD_REQUEST), True
    if words[0] not in ("GET", "HEAD"):
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD")), True
    return handler(words[1].partition("?")[0]), words[0] == "GET"


def encode(answer: Answer, with_body: bool = True) -> bytes:
    """The answer as HTTP/1.1, announcing the end of the connection."""
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    head = "\r\n".join(lines).encode("latin-1") + _BLANK_LINE
    return head + answer.body if with_body else head
