"""Runs the connection generator: connect.c where a compiler is, else its twin in Python."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from lbctl.bench.testbed import Testbed
from lbctl.errors import LbError
from lbctl.lab import agents, namespace

SOURCE = Path(__file__).with_name("connect.c")
COMPILE_TIMEOUT = 60.0
WATCH_SECONDS = 30
END_OF_TARGETS = ". 0\n"  # where more may follow
MOST_FAILED = 0.1  # of the connections of a turn: more, and there is nothing to measure

Mode = Literal["connect", "cycle", "roundtrip"]
Target = tuple[str, int]


class Aim(msgspec.Struct, frozen=True):
    """What a client connects to, and the port the endpoints have."""

    targets: tuple[Target, ...]
    port: int


class Timing(msgspec.Struct, frozen=True):
    """One turn: nanoseconds per connection or round trip, and the thread's CPU time for all."""

    ns: np.ndarray
    cpu_ns: int
    failed: int  # connections without an answer within a second; they are in no figure


class Generator:
    """Connects from a peer's client to the server, on one CPU (-1: any)."""

    def __init__(self, testbed: Testbed, cpu: int) -> None:
        self._testbed = testbed
        self._cpu = cpu
        self._program = compiled(testbed.run)
        self.compiled = self._program is not None

    def run(self, peer: str, mode: Mode, aim: Aim, count: int) -> Timing:
        """`count` connections (or round trips of one) to the targets in turn. LbError if more than
        one in ten fails."""
        # Each connection that fails takes a second.
        limit = 20.0 + count * 0.05
        argv = self._argv(peer, mode, self._cpu, aim.port, count)
        client = self._testbed.sites[peer].client
        try:
            done = self._testbed.run_in(client, peer, argv, _lines(aim.targets), limit)
        except subprocess.TimeoutExpired:
            raise LbError(f"{peer}: {mode}: no end within {limit:g} s") from None
        if done.returncode:
            raise LbError(f"{peer}: {mode}: {done.stderr.strip() or f'exit {done.returncode}'}")
        *numbers, cpu = done.stdout.splitlines()
        ns = np.array(numbers, dtype=np.int64)
        failed = int(np.count_nonzero(ns < 0))
        if failed > MOST_FAILED * len(ns):
            raise LbError(f"{peer}: {failed} of {len(ns)} connections failed")
        return Timing(ns[ns >= 0], int(cpu.split()[1]), failed)

    @contextmanager
    def watching(self, peer: str, aim: Aim, address: str) -> Iterator[Waiting]:
        """Connects to the aim until `address` answers; enters once a first connection worked."""
        with self.started(peer, "watch", aim, WATCH_SECONDS, address) as child:
            waiting = Waiting(peer, child)
            waiting.line("a first connection")
            yield waiting

    @contextmanager
    def started(
        self, peer: str, mode: str, aim: Aim, count: int, *more: str
    ) -> Iterator[subprocess.Popen[str]]:
        """A generator that runs while the block does, and has been told its targets."""
        argv = self._argv(peer, mode, self._cpu, aim.port, count, *more)
        command = self._testbed.command(peer, argv, self._testbed.sites[peer].client)
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=agents.environment(),
        ) as child:
            assert child.stdin is not None
            child.stdin.write(_lines(aim.targets) + END_OF_TARGETS)
            child.stdin.flush()
            try:
                yield child
            finally:
                child.kill()

    @contextmanager
    def serving_http(self, port: int) -> Iterator[None]:
        """An HTTP server on the endpoints' port while the block runs. Needs the compiled one."""
        peer = next(iter(self._testbed.sites))
        with subprocess.Popen(
            self._testbed.command(
                peer, self._argv(peer, "http", -1, port, 0), self._testbed.server
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                Waiting("server", child).line("the HTTP server")
                yield
            finally:
                child.kill()

    def _argv(self, peer: str, mode: str, cpu: int, port: int, count: int, *more: str) -> list[str]:
        client = namespace.path_of(self._testbed.sites[peer].client)
        server = namespace.path_of(self._testbed.server)
        own = [sys.executable, "-m", "lbctl.bench.generator_py"]
        program = [str(self._program)] if self._program else own
        numbers = [str(cpu), str(port), str(count)]
        return [*program, mode, str(client), str(server), *numbers, *more]


class Waiting:
    """A generator that waits for something to change."""

    def __init__(self, peer: str, child: subprocess.Popen[str]) -> None:
        self._peer = peer
        self._child = child

    def line(self, what: str, seconds: float = WATCH_SECONDS + 5.0) -> str:
        """The next line it says. LbError if it ends, or says nothing for so long."""
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        said = self._child.stdout.readline().strip() if ready else ""
        if not said:
            self._child.kill()
            _, errors = self._child.communicate()
            raise LbError(f"{self._peer}: waited in vain for {what}: {errors.strip()}")
        return said

    def seen_at(self) -> float:
        """When a connection reached the address: seconds of the monotonic clock."""
        return int(self.line("a connection to the new endpoint")) / 1e9


def monotonic() -> float:
    """The clock of `Waiting.seen_at`."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _lines(targets: Sequence[Target]) -> str:
    return "".join(f"{address} {port}\n" for address, port in targets)


def compiled(directory: Path) -> Path | None:
    """The compiled connect.c; None if there is no compiler (or no libc headers) here."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return None
    program = directory / "connect"
    done = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(SOURCE)],
        capture_output=True,
        text=True,
        timeout=COMPILE_TIMEOUT,
        check=False,
    )
    return program if done.returncode == 0 else None
