"""When a table grows, and how large it becomes: early enough that it is not full before the larger
one is in its place, which takes some seconds; by doubling, up to what the operator allows."""

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

    def __init__(self) -> None:
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
        while room.used + more > FULL * size and size < room.most:
            size *= 2
        return max(room.now, min(size, room.most))
