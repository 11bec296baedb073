"""All that can be looked at, held against what the API says now; and having it put right.

There is one writer: the agent while it lives, which is asked to look at everything; without one,
this process, which holds the instance meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from ebpf.errors import LayoutError
from ebpf.layouts import tail_programs
from lbctl import status
from lbctl.errors import LbError, UsageError
from lbctl.inspect.opened import open_instance
from lbctl.reconcile.places import NO_ROOM
from lbctl.verify import attached, direct, flows, maps
from lbctl.verify.difference import Difference
from lbctl.verify.objects import Known, Question, know

# Changes that are under way look like differences: what counts is there twice, this far apart.
AGAIN_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 120.0  # for the agent to look at everything
_SETTLE_SECONDS: Final = 20.0  # ... and for what it read to be written
_POLL_SECONDS: Final = 0.2
Say = Callable[[str], None]


class Verified(msgspec.Struct, frozen=True):
    """The outcome. `notes` are what is known and is no difference."""

    node: str
    objects: str  # where they are from
    agent: int
    services: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()
    repaired: tuple[Difference, ...] = ()  # were there, and are no more


def verify(question: Question, say: Say, *, repair: bool = False) -> Verified:
    """Look, and look again at what was found. With `repair`, have that put right."""
    _require_agents_network(status.running_agent(question.pin_dir))
    known = know(question, say)
    found = _twice(question, known)
    if not (repair and found):
        return _verified(question, known, found)
    agent = status.running_agent(question.pin_dir)
    if agent:
        _ask_agent(question.pin_dir)
    else:
        direct.repair(question.pin_dir, known)
    until = time.monotonic() + _SETTLE_SECONDS
    left = found
    while left and time.monotonic() < until:
        known = know(question, _say_nothing)
        left = _look(question, known)
        time.sleep(_POLL_SECONDS if left else 0)
    done = sorted(set(found) - set(left))
    return msgspec.structs.replace(_verified(question, known, left), repaired=tuple(done))


def _require_agents_network(agent: int) -> None:
    """In another network namespace every interface would look wrong. Raises UsageError."""
    try:
        theirs = os.readlink(f"/proc/{agent}/ns/net")
    except OSError:  # no agent, or a process that may not be looked at: it cannot be known
        return
    if theirs != os.readlink("/proc/self/ns/net"):
        raise UsageError(
            f"agent {agent} runs in another network namespace, with other interfaces",
            f"Run it there: nsenter --net=/proc/{agent}/ns/net lbctl verify",
        )


def _verified(question: Question, known: Known, found: list[Difference]) -> Verified:
    waiting = _waiting(question.pin_dir)
    return Verified(
        node=known.node.name,
        objects=known.place,
        agent=status.running_agent(question.pin_dir),
        services=len(known.services),
        differences=tuple(found),
        notes=(*known.problems, *waiting.values()),
    )


def _say_nothing(_: str) -> None:
    """What there is to say was said at the first look."""


def _twice(question: Question, known: Known) -> list[Difference]:
    """Of both looks, what is in both; the objects too are read twice."""
    found = _look(question, known)
    if not found:
        return []
    time.sleep(AGAIN_SECONDS)
    again = set(_look(question, know(question, _say_nothing)))
    return [one for one in found if one in again]


def _look(question: Question, known: Known) -> list[Difference]:
    return sorted(set(_differences(question.pin_dir, known)))


def _differences(pin_dir: Path, known: Known) -> Iterator[Difference]:
    missing = list(attached.pins(pin_dir))
    yield from missing
    standing = known.standing
    if known.agents and standing and standing.object != known.object:
        yield Difference("node", known.node.name, "the agent goes by an older Node object")
    if standing is not None:
        yield from attached.interfaces(pin_dir, attached.wanted(standing))
        yield from attached.drivers(pin_dir)
        yield from attached.sockets(pin_dir, standing.socket_lb)
    if missing:  # what is not pinned cannot be read
        return
    try:
        with open_instance(pin_dir) as instance:
            yield from maps.compare(instance, known.services, known.node, _waiting(pin_dir))
            yield from flows.dangling(instance)
            yield from attached.calls(pin_dir, tail_programs(instance.enums))
    except LayoutError as error:
        yield Difference("pin", "maps", error.message)


def _waiting(pin_dir: Path) -> dict[str, str]:
    """Services that have no room, which the agent has said."""
    said = status.read_troubles(pin_dir)
    return {
        key: text for key, texts in said.items() for text in texts if f"{key} {NO_ROOM}" in text
    }


def _ask_agent(pin_dir: Path) -> None:
    """Have the agent read all objects anew and look at everything. Raises LbError."""
    number = time.time_ns()
    status.write_beside(pin_dir, "asked", str(number).encode())
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        said = status.read(pin_dir)
        if said and said.audit and said.audit.answered >= number:
            return
        if not status.running_agent(pin_dir):
            raise LbError("the agent ended meanwhile", "Try again: without one, this does it all.")
        time.sleep(_POLL_SECONDS)
    raise LbError(
        f"the agent has not looked at everything in {ANSWER_SECONDS:.0f} s",
        "`lbctl status` says how it is doing.",
    )
