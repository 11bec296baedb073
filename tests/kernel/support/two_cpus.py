"""Two packets at the same moment on two CPUs, many times over.

Two processes in step: one test run each, begun together. How often the two meet within the few
hundred nanoseconds that matter is chance, so a test needs thousands of them.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence

from ebpf.kernel import testrun
from tests.kernel.support.world import World

Sent = tuple[str, bytes]  # the entry program and the frame
Got = tuple[int, bytes]  # verdict and frame
_STEP = 8  # bytes of a counter
_ROOM = 2048
_LATE = 60.0  # seconds for all of it


class _Shared:
    """How far each of the two is, and what the second one got."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, 4096 + count * _ROOM)

    def reach(self, who: int, step: int) -> None:
        struct.pack_into("<Q", self._memory, who * _STEP, step)

    def wait_for(self, who: int, step: int) -> None:
        end = time.monotonic() + _LATE
        place = slice(who * _STEP, who * _STEP + _STEP)
        while int.from_bytes(self._memory[place], "little") < step:
            if time.monotonic() > end:
                raise TimeoutError(f"the other CPU never came to step {step}")

    def keep(self, number: int, got: Got) -> None:
        at = 4096 + number * _ROOM
        struct.pack_into("<iI", self._memory, at, got[0], len(got[1]))
        self._memory[at + 8 : at + 8 + len(got[1])] = got[1]

    def kept(self, number: int) -> Got:
        at = 4096 + number * _ROOM
        verdict, length = struct.unpack_from("<iI", self._memory, at)
        return verdict, self._memory[at + 8 : at + 8 + length]


def at_once(world: World, pairs: Sequence[tuple[Sent, Sent]]) -> list[tuple[Got, Got]]:
    """What became of both packets of each pair."""
    shared, cpus = _Shared(len(pairs)), sorted(os.sched_getaffinity(0))[:2]
    child = os.fork()
    if not child:
        code = 1
        try:
            os.sched_setaffinity(0, {cpus[1]})
            for number, (_, sent) in enumerate(pairs):
                shared.reach(1, number + 1)
                shared.wait_for(0, number + 1)
                shared.keep(number, _run(world, sent))
            shared.reach(1, len(pairs) + 1)
            code = 0
        finally:
            os._exit(code)
    results = []
    try:
        os.sched_setaffinity(0, {cpus[0]})
        for number, (sent, _) in enumerate(pairs):
            shared.wait_for(1, number + 1)
            shared.reach(0, number + 1)
            results.append(_run(world, sent))
    finally:
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
        assert os.waitpid(child, 0)[1] == 0
    return [(got, shared.kept(number)) for number, got in enumerate(results)]


def _run(world: World, sent: Sent) -> Got:
    result = testrun.run(world.programs.fds[sent[0]], sent[1])
    return result.retval, result.packet
