"""What is wrong with the data path or the agent, for how long it may be, and who is told then.

docs/operations.md has the table. /livez is not here: a restart mends a loop that hangs, and nothing
else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from lbctl.agent.attaching import describe
from lbctl.agent.parts import Parts
from lbctl.health.monitor import STALE_SECONDS, Verdict
from lbctl.troubles import MOST_LINES, Said, bounded

__all__ = ["MOST_LINES", "Conditions", "Trouble", "bounded"]

UPLINK_SECONDS: Final = 30.0  # an uplink without programs, until load balancers are told
TURN_SECONDS: Final = 30.0  # an interface whose turn has not come
SOURCE_SECONDS: Final = 60.0  # the source is cut off
NODE_SECONDS: Final = 60.0  # no Node object has this node's name
LOADING_SECONDS: Final = 60.0  # the kernel has not taken the programs
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong, of a `kind` of lbctl/troubles.py, `since` by the monotonic clock, or
    since it was first seen. It is said, makes the agent unready, and load balancers are told, after
    these seconds."""

    name: str
    kind: str
    text: str
    since: float | None = None
    said: float = 0.0
    unready: float = 0.0
    unfit: float = _NEVER


class Conditions:
    """Looks at all parts, and remembers since when what is wrong is."""

    def __init__(self, parts: Parts, clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._since: dict[str, float] = {}
        self._due: float | None = None
        self.settled = False  # nothing makes the agent unready
        self.said: tuple[Said, ...] = ()  # by the last `look`

    def due(self) -> float | None:
        """When `look` would find something else if nothing happened until then."""
        return self._due

    def bounded(self) -> list[Said]:
        """What the last `look` found, as far as it fits a page."""
        more = len(self.said) - MOST_LINES
        kept = [*self.said[:MOST_LINES]]
        return [*kept, Said("interface", f"... and {more} more of this kind")] if more > 0 else kept

    def look(self) -> list[str]:
        """Sentences about what is wrong now; the health servers are told what follows from it."""
        now = self._clock()
        found = list(self._troubles())
        self._since = {
            one.name: one.since if one.since is not None else self._since.get(one.name, now)
            for one in found
        }
        aged = [(one, now - self._since[one.name]) for one in found]
        bounds = (
            self._since[one.name] + bound
            for one, age in aged
            for bound in (one.said, one.unready, one.unfit)
            if age < bound < _NEVER
        )
        self._due = min(bounds, default=None)
        self.said = tuple(Said(one.kind, one.text) for one, age in aged if age >= one.said)
        texts = [one.text for one in self.said]
        self.settled = not any(age >= one.unready for one, age in aged)
        fit = not any(age >= one.unfit for one, age in aged)
        self._parts.health.judge(Verdict(self.settled, fit, tuple(bounded(texts))))
        return texts

    def _troubles(self) -> Iterator[Trouble]:
        parts = self._parts
        yield from self._interfaces()
        for text in parts.sockets.problems:
            yield Trouble("sockets", "sockets", text)
        if parts.programs.began is not None and not parts.programs.loaded:
            yield Trouble(
                "programs",
                "programs",
                "the kernel has not accepted the programs yet; the log says what it is doing",
                since=parts.programs.began,
                said=LOADING_SECONDS,
                unready=LOADING_SECONDS,
            )
        if parts.health.unwritten():
            yield Trouble(
                "maps",
                "maps",
                f"changes could not be written for {STALE_SECONDS:.0f} s: services work as before; "
                "the log says which map refused what",
                unfit=0.0,
            )
        yield from self._source()
        for text in (*parts.keeper.problems(), *parts.source.status().failing):
            name = text.partition(":")[0]
            yield Trouble(name, "thread", f"{text}; if this continues, restart the agent")
        for text in parts.guard.problems():
            name = text.partition(":")[0]
            yield Trouble(name, "thread", f"{text}; the log says where, please report it")

    def _interfaces(self) -> Iterator[Trouble]:
        interfaces = self._parts.interfaces
        missing = interfaces.unattached
        for item, text in zip(missing, describe(missing), strict=True):
            wait = 0.0 if item.why else TURN_SECONDS
            yield Trouble(
                f"interface {item.name}",
                "interface",
                text,
                since=item.since,
                said=wait,
                unready=wait,
                unfit=UPLINK_SECONDS if item.uplink else _NEVER,
            )
        pods = [item for item in missing if not item.uplink]
        if len(pods) > max(1, interfaces.attached):
            yield Trouble(
                "most interfaces",
                "interfaces",
                f"{len(pods)} pod interfaces have no programs, most of this node's",
                said=TURN_SECONDS,
                unready=TURN_SECONDS,
                unfit=TURN_SECONDS,
            )

    def _source(self) -> Iterator[Trouble]:
        source, node = self._parts.source.status(), self._parts.facts
        if not source.connected:
            why = f": {source.last_error}" if source.last_error else ""
            kept = (
                "what is known is served, changes wait" if source.synced else "nothing is known yet"
            )
            yield Trouble(
                "source",
                "source",
                f"cut off from the source of objects{why}; {kept}",
                said=SOURCE_SECONDS,
                unready=SOURCE_SECONDS,
            )
        if source.synced and node.node is None and source.node_expected:
            yield Trouble(
                "node",
                "node",
                f"no Node object is called {node.name}, the name of this node: no endpoint counts "
                "as local, so policy Local drops traffic from outside; give --node-name the name "
                "that `kubectl get nodes` shows",
                unready=NODE_SECONDS,
            )
