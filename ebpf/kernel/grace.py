"""Waiting until every program that runs now has ended: what it looked at is nobody's after that."""

from __future__ import annotations

import ctypes
import time

from ebpf import calls

_GLOBAL = 1  # MEMBARRIER_CMD_GLOBAL, which is synchronize_rcu() in the kernel
# Without it (CPUs with nohz_full, or a filter of system calls): programs take microseconds, and a
# thread that was preempted inside one comes back within this.
_INSTEAD_SECONDS = 1.0


def wait() -> None:
    """Returns some milliseconds later. For threads that have nothing else to do."""
    if known := calls.numbers():
        library = ctypes.CDLL(None, use_errno=True)
        if library.syscall(ctypes.c_long(known.membarrier), ctypes.c_int(_GLOBAL), 0, 0) == 0:
            return
    time.sleep(_INSTEAD_SECONDS)
