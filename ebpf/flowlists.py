"""Lists of flows, as programs of bpf_src/table.c take them in place of a frame, and give them back.

The records are those of types.h by the same names; tests/kernel/test_flowtable.py reads back what
the programs made of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ebpf.kernel import testrun
from ebpf.maps.base import Records

_MOST = 256  # MOST_LISTED of table.c
_BYTES = 3000  # fit a page together with what the kernel adds
_WORK = np.dtype(
    [("frame", "u1", 16), ("next", "u4"), ("count", "u4"), ("done", "u4"), ("pad", "u4")]
)
FLOW = np.dtype([("place", "u4"), ("generation", "u4"), ("why", "u4"), ("pad", "u4")])
_OLD = np.dtype(
    [("bytes", "u8"), ("packets", "u4"), ("place", "u4"), ("copy", "u4"), ("pad", "u4")]
)
RING = np.dtype([("generation", "u4"), ("count", "u4"), ("cells", _OLD, 4)])
NO_PLACES = 0xFFFFFFFE  # CELL_TAKEN and CELL_FULL


def cell_of(family: str) -> np.dtype[Any]:
    """struct listed_cell of types.h."""
    address: Any = ("u1", 16) if family == "6" else "u4"
    key = [
        ("src", *address) if family == "6" else ("src", address),
        ("dst", *address) if family == "6" else ("dst", address),
        ("sport", "u2"),
        ("dport", "u2"),
        ("proto", "u1"),
        ("pad", "u1", 3),
    ]
    fields = [
        ("key", np.dtype(key)),
        ("holder", *address) if family == "6" else ("holder", address),
        ("addr", *address) if family == "6" else ("addr", address),
        ("bytes", "u8"),
        ("port", "u2"),
        ("client_port", "u2"),
        *((name, "u4") for name in ("packets", "ack", "seen", "backend", "service")),
        *((name, "u4") for name in ("next", "place", "generation")),
        *((name, "u1") for name in ("kind", "flags", "state", "pad")),
    ]
    return np.dtype(fields)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A signal would end test runs half-way, and what was done would not be told."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(fd: int, items: Records) -> tuple[Records, int]:
    """Runs a program once for each item; returns them as it left them, and its count."""
    out, done = items.copy(), 0
    step = min(_MOST, _BYTES // items.dtype.itemsize)
    with _undisturbed():
        for start in range(0, len(items), step):
            part = out[start : start + step]
            work = np.zeros(1, _WORK)
            work["count"] = len(part)
            frame = work.tobytes() + part.tobytes()
            frame = testrun.run(fd, frame, repeat=len(part)).packet
            done += int(np.frombuffer(frame, _WORK, 1)["done"][0])
            part[:] = np.frombuffer(frame, items.dtype, len(part), _WORK.itemsize)
    return out, done
