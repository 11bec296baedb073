"""Round trips with many connections open, each on another one: what is waited for in tables.

The floor's connections stay open all the time. Every peer opens its own, takes turns with the
floor, and closes them: two lots of sockets are the most that memory has to hold.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from lbctl.bench.generator import Timing, Waiting
from lbctl.bench.measures import Measuring, paired
from lbctl.bench.records import FLOOR, summary
from lbctl.errors import LbError

MEASURE = "roundtrip_64k"
_OPENING_SECONDS = 180.0
_PORTS = 28_000  # that a kernel chooses from (net.ipv4.ip_local_port_range), to each destination


class Opened:
    """One peer's connections, in a process that holds them."""

    def __init__(self, peer: str, child: subprocess.Popen[str]) -> None:
        self._peer = peer
        self._child = child
        self._waiting = Waiting(peer, child)

    def wait(self) -> int:
        """Until all are open; how many had to ask twice. LbError if one could not be opened."""
        return int(self._waiting.line("its connections to open", _OPENING_SECONDS).split()[1])

    def roundtrips(self, count: int) -> Timing:
        """One on each of the next `count`. LbError if one gets no answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{count}\n")
        self._child.stdin.flush()
        assert self._child.stdout is not None
        lines = [self._waiting.line("round trips")]  # the others come with it
        lines += [self._child.stdout.readline() for _ in range(count)]
        if not lines[-1]:
            raise LbError(f"{self._peer}: a round trip on one of many connections had no answer")
        return Timing(np.array(lines[:-1], dtype=np.int64), int(lines[-1].split()[1]), 0)

    def close(self) -> None:
        """All connections, and waits until they are."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.stdin = None
        self._child.wait(_OPENING_SECONDS)


@contextmanager
def opened(run: Measuring, peer: str) -> Iterator[Opened]:
    """The connections of a peer. LbError."""
    device = run.testbed.sites[peer].server_interface
    with run.generator.started(peer, "many", run.aims[peer], run.effort.many, device) as child:
        made = Opened(peer, child)
        if late := made.wait():
            run.results.about.failures.append(
                f"{peer}: {late:,} of {run.effort.many:,} connections, opened as fast as one CPU "
                "can, had an answer only to a later SYN"
            )
        yield made
        made.close()


def measure(run: Measuring) -> None:
    """roundtrip_64k of all peers."""
    if not run.generator.compiled:
        for peer in run.peers:
            run.miss(peer.name, [MEASURE], "needs a C compiler (package gcc)")
        return
    if run.effort.many > (most := _PORTS * min(len(aim.targets) for aim in run.aims.values())):
        reason = f"one client has no more than {most:,} ports to so few services; measure with more"
        for peer in run.peers:
            run.miss(peer.name, [MEASURE], reason)
        return
    run.progress(f"{run.effort.many:,} connections", FLOOR)
    with opened(run, FLOOR) as floor:
        bare: list[float] = []
        for peer in run.peers:
            if peer.name == FLOOR:
                continue
            run.progress(f"{run.effort.many:,} connections", peer.name)
            try:
                bare = _of_peer(run, peer.name, floor)
            except LbError as error:
                run.miss(peer.name, [MEASURE], error.message)
    if bare:
        noise = np.abs(np.array(bare) - np.median(bare))
        run.results.add([summary(FLOOR, run.services, MEASURE, noise, 1.0)])


def _of_peer(run: Measuring, peer: str, floor: Opened) -> list[float]:
    """Adds the peer's record; returns the floor's medians, in microseconds."""
    bare: list[float] = []
    mine: list[float] = []
    with opened(run, peer) as ours:
        for turn in range(run.effort.many_turns):
            pair = [(floor, bare), (ours, mine)]
            for one, medians in reversed(pair) if turn % 2 else pair:
                found = one.roundtrips(run.effort.many_roundtrips)
                medians.append(float(np.median(found.ns)) / 1e3)
    added = [a - b for a, b in zip(mine, bare, strict=True)]
    run.results.add([summary(peer, run.services, MEASURE, added, paired(mine, bare))])
    return bare
