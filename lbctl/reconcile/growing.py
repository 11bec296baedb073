"""When a table grows, and how large it becomes: early enough that it is not full before the larger
one is in its place, which takes some seconds; step by step, up to what the operator allows."""

import math
from typing import Final, NamedTuple

# Above this share buckets begin to be full by chance, and what may be evicted is.
FULL: Final = 0.5
AHEAD_SECONDS: Final = 10.0  # until the larger one is in place: programs are loaded for it


class Room(NamedTuple):
    """Places of one table: those taken, those there are, and those there may be."""

    used: int
    now: int
    most: int


class Growing:
    """Follows one table."""

    def __init__(self, full: float = FULL, step: float = 2.0) -> None:
        """It becomes `step` times as large when this share is used, or about to be."""
        self._full = full
        self._step = step
        self._used = 0
        self._at: float | None = None

    def wanted(self, room: Room, now: float) -> int:
        """How many places it should have; `room.now` if those are enough, or all that may be.
        Asked about once a second."""
        more = 0.0
        if self._at is not None and now > self._at:
            more = max(0.0, (room.used - self._used) / (now - self._at)) * AHEAD_SECONDS
        self._used, self._at = room.used, now
        size = room.now
        while room.used + more > self._full * size and size < room.most:
            size = math.ceil(size * self._step)
        return max(room.now, min(size, room.most))
