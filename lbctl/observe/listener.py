"""Listening to an agent's events from another process."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np

from lbctl.errors import LbError, NotFound
from lbctl.observe import wire
from lbctl.observe.wire import Frame, Frames, Hello, Told, Wanted

_ANSWER_SECONDS: Final = 10.0
_PIECE: Final = 1 << 20
_FEWEST: Final = {"time", "what", "why", "service", "src", "dst", "sport", "dport"}


class Listener:
    """Events from when it was made on; a context manager. Once `finish` was called, the rest."""

    def __init__(self, pin_dir: Path, wanted: Wanted) -> None:
        """Raises NotFound if no agent runs, LbError if it does not answer."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(_ANSWER_SECONDS)
            self._connect(pin_dir)
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                self._sock.sendall(msgspec.json.encode(wanted) + b"\n")
            said, rest = self._hello(pin_dir)
        except BaseException:
            self._sock.close()
            raise
        self._frames = Frames(self._layout(said))
        self._rest = rest
        self.ended = False
        self.listening = said.listening

    def _connect(self, pin_dir: Path) -> None:
        try:
            self._sock.connect(str(wire.path_of(pin_dir)))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                raise NotFound(
                    f"no agent of {pin_dir} tells of events",
                    "One has to run, of this version; --pin-dir names another instance.",
                ) from error
            raise LbError(f"the agent cannot be asked for events: {error.strerror}") from error

    def _hello(self, pin_dir: Path) -> tuple[Hello, bytes]:
        received = b""
        while b"\n" not in received:
            try:
                piece = self._sock.recv(wire.MOST_LINE)
            except (TimeoutError, ConnectionError) as error:
                raise LbError(
                    f"the agent of {pin_dir} does not answer", "`lbctl status` says how it is."
                ) from error
            if not piece:
                raise LbError("the agent takes no more listeners", "End another `lbctl observe`.")
            received += piece
        line, _, rest = received.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=Hello), rest
        except msgspec.DecodeError as error:
            raise LbError(
                "the agent's answer cannot be read", "It may be of another version."
            ) from (error)

    def _layout(self, said: Hello) -> np.dtype[Any]:
        found = said.dtype
        if not set(found.names or ()) >= _FEWEST:
            raise LbError("the agent's events lack fields", "It is of another version.")
        return found

    def fileno(self) -> int:
        """Readable when there is something."""
        return self._sock.fileno()

    def finish(self) -> None:
        """Have all that was told until now, and no more."""
        self._sock.shutdown(socket.SHUT_WR)

    def frames(self, seconds: float) -> Iterator[Frame]:
        """What comes within so long, if anything does. After the last frame, or when the agent has
        gone, `ended` is true."""
        if not self._rest:
            ready, _, _ = select.select([self._sock], [], [], max(0.0, seconds))
            if not ready:
                return
        try:
            piece = self._rest or self._sock.recv(_PIECE)
        except ConnectionError:
            piece = b""
        self._rest = b""
        self.ended = not piece
        for frame in self._frames.take(piece):
            self.ended = self.ended or frame.told is Told.LAST
            yield frame

    def close(self) -> None:
        """Listen no more."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
