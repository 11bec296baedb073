"""Saying that an agent lives, in the maps: the socket hooks go by it.

While none lives, nobody puts programs on the interfaces of new pods; the hooks then serve the
sockets of every network namespace (`agent_lives` in bpf_src/socket.h).
"""

from typing import Final

from lbctl.datapath import clock
from lbctl.datapath.tables import ArrayTable

# Less than half of what the programs wait for (AGENT_SECONDS): a turn of the loop may be late.
BEAT_SECONDS: Final = 2.0


class Beat:
    """Begins with `start`; what is late is caught up with the next turn of the loop."""

    def __init__(self, config: ArrayTable) -> None:
        self._config = config
        self._next: float | None = None

    def start(self, now: float) -> None:
        """Every interface has its programs: from now on new ones get theirs at once."""
        self.step(now)

    def stop(self) -> None:
        """There is no agent any more."""
        self._next = None
        self._config.records["agent_beat"] = 0

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return self._next

    def step(self, now: float) -> None:
        """Say it once more."""
        self._next = now + BEAT_SECONDS
        self._config.records["agent_beat"] = clock.current_beat() or 1  # 0 says that there is none
