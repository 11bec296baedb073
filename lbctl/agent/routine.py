"""What is looked at again now and then, even if nobody reports a change."""

import structlog

from lbctl.agent.interfaces import Interfaces
from lbctl.agent.sockets import SocketHooks
from lbctl.host import reserve
from lbctl.program import config

ROUTINE_SECONDS = 60.0


class Routine:
    """Interfaces with what runs on them, socket hooks, and the reserved ports."""

    def __init__(self, interfaces: Interfaces, sockets: SocketHooks) -> None:
        self._interfaces = interfaces
        self._sockets = sockets
        self._next = 0.0
        self._log = structlog.get_logger()
        self.problem = ""  # of the reserved ports

    def due(self) -> float:
        """When `step` has something to do, on the monotonic clock."""
        return self._next

    def step(self, now: float) -> None:
        """Put right what others changed."""
        self._next = now + ROUTINE_SECONDS
        self._interfaces.refresh()
        self._sockets.refresh()
        self.reserve_ports()

    def reserve_ports(self) -> None:
        """Keep others from the ports that translated connections get."""
        first, last = config.PORTS[0], config.NODE_PORTS[1]
        problem = ""
        place = reserve.place()
        try:
            if reserve.reserve(first, last, place):
                self._log.info("reserved source ports", first=first, last=last)
        except OSError as error:
            problem = (
                f"cannot reserve ports {first}-{last} in {place}: {error.strerror}; "
                "a process on this node may use one that a translated connection has"
            )
            if problem != self.problem:
                self._log.warning("source ports cannot be reserved", why=problem)
        self.problem = problem
