"""What is wrong with the data path or the agent, for how long it may be, and who is told then.

docs/operations.md has the table. /livez is not here: a restart mends a loop that hangs, and nothing
else.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from lbctl.agent.attaching import describe
from lbctl.agent.parts import Parts
from lbctl.health.monitor import STALE_SECONDS, Verdict

UPLINK_SECONDS: Final = 30.0  # an uplink without programs, until load balancers are told
TURN_SECONDS: Final = 30.0  # an interface whose turn has not come
SOURCE_SECONDS: Final = 60.0  # the source is cut off
NODE_SECONDS: Final = 60.0  # no Node object has this node's name
LOADING_SECONDS: Final = 60.0  # the kernel has not taken the programs
MOST_LINES: Final = 100  # of one kind; a line is about one object
_NEVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong, `since` by the monotonic clock, or since it was first seen. It is
    said, makes the agent unready, and load balancers are told, after these seconds."""

    name: str
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

    def due(self) -> float | None:
        """When `look` would find something else if nothing happened until then."""
        return self._due

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
        texts = [one.text for one, age in aged if age >= one.said]
        self.settled = not any(age >= one.unready for one, age in aged)
        fit = not any(age >= one.unfit for one, age in aged)
        self._parts.health.judge(Verdict(self.settled, fit, tuple(bounded(texts))))
        return texts

    def _troubles(self) -> Iterator[Trouble]:
        parts = self._parts
        yield from self._interfaces()
        for text in parts.sockets.problems:
            yield Trouble("sockets", text)
        if parts.programs.began is not None and not parts.programs.loaded:
            yield Trouble(
                "programs",
                "the kernel has not taken the programs yet; the log says how far it is",
                since=parts.programs.began,
                said=LOADING_SECONDS,
                unready=LOADING_SECONDS,
            )
        if parts.health.unwritten():
            yield Trouble(
                "maps",
                f"changes could not be written for {STALE_SECONDS:.0f} s: what was there before is "
                "served; the log says which map refused what",
                unfit=0.0,
            )
        yield from self._source()
        for text in (*parts.keeper.problems(), *parts.source.status().failing):
            yield Trouble(text.partition(":")[0], f"{text}; if that goes on, restart the agent")
        for text in parts.guard.problems():
            yield Trouble(text.partition(":")[0], f"{text}; the log says where, please report it")

    def _interfaces(self) -> Iterator[Trouble]:
        interfaces = self._parts.interfaces
        missing = interfaces.unattached
        for item, text in zip(missing, describe(missing), strict=True):
            wait = 0.0 if item.why else TURN_SECONDS
            yield Trouble(
                f"interface {item.name}",
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
                f"{len(pods)} pod interfaces have no programs, most of this node's",
                said=TURN_SECONDS,
                unready=TURN_SECONDS,
                unfit=TURN_SECONDS,
            )

    def _source(self) -> Iterator[Trouble]:
        source, node = self._parts.source.status(), self._parts.facts
        if not source.connected:
            why = f": {source.last_error}" if source.last_error else ""
            kept = "what is known is served, changes wait" if source.synced else "nothing is known"
            yield Trouble(
                "source",
                f"cut off from where the objects are{why}; {kept}",
                said=SOURCE_SECONDS,
                unready=SOURCE_SECONDS,
            )
        if source.synced and node.node is None and source.node_expected:
            yield Trouble(
                "node",
                f"no Node object is called {node.name}, the name of this node: no endpoint counts "
                "as local, so policy Local drops what comes from outside; give --node-name the "
                "name that `kubectl get nodes` shows",
                unready=NODE_SECONDS,
            )


def bounded(texts: Iterable[str], most: int = MOST_LINES) -> list[str]:
    """The first of them, and how many more there are."""
    texts = iter(texts)
    found = list(itertools.islice(texts, most))
    more = sum(1 for _ in texts)
    return [*found, f"... and {more} more of this kind"] if more else found
