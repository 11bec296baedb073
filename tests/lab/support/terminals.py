"""A program on a terminal of its own: what it shows, and keys for it."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from tests.support.waiting import wait_until


class Terminal:
    """120 columns, 40 lines."""

    def __init__(self, leader: int, process: subprocess.Popen[bytes]) -> None:
        self._leader = leader
        self._process = process
        self._shown = bytearray()

    def press(self, key: bytes) -> None:
        os.write(self._leader, key)

    def wait_for(self, text: bytes) -> None:
        wait_until(lambda: text in self._read())

    def wait_end(self) -> int:
        """What the process returned."""
        wait_until(lambda: self._read() and self._process.poll() is not None)
        assert self._process.returncode is not None
        return self._process.returncode

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):  # nothing yet, or nobody any more
            self._shown.extend(os.read(self._leader, 1 << 16))
        return bytes(self._shown)


@contextlib.contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Runs the command until the block ends."""
    leader, follower = pty.openpty()
    size = {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env={**environment, **size}
    )
    os.close(follower)
    os.set_blocking(leader, False)
    try:
        yield Terminal(leader, process)
    finally:
        process.kill()
        process.wait(10)
        os.close(leader)
