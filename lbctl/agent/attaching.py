"""Which interfaces get which programs, and putting them there one at a time, the newest first."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from ebpf.errors import LbError
from ebpf.hooks.tc import Attacher, Attachment
from ebpf.kernel import netlink
from ebpf.kernel.netlink import Changes, IPAddress, Link, Network
from ebpf.programs import Generation
from lbctl.agent.drivers import Drivers
from lbctl.agent.uplinks import pod_interfaces, uplinks
from lbctl.threads import Beat

# Of the veth's host side: what comes in there comes from the pod.
_POD_HOOKS = {"ingress": "entry_from_pod", "egress": "entry_to_pod"}
_UPLINK_HOOKS = {"ingress": "entry_from_net", "egress": "entry_to_net"}
_TUNNEL_HOOKS = {"ingress": "entry_from_tunnel", "egress": "entry_to_tunnel"}
# Between looks at the whole network after addresses or routes changed; more if they take long.
REFRESH_SECONDS = 1.0
_LOOK_SHARE = 10
RETRY_SECONDS = 10.0  # for interfaces that could not be given programs
REPAIRED_SECONDS = 600.0  # so long it is said that somebody took programs away
_LINKS_A_TURN = 8  # messages about links that are taken apart before something is attached
CHECKED_SECONDS = 4.0  # in which it is looked once whether each interface still runs our programs
_CHECK_SECONDS = 0.02  # between two of them at least: there may be very many
_STUCK_SECONDS = 60.0  # the kernel lets one wait while others change many interfaces


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the agent asks for. `looks` counts the times that everything is to be looked at."""

    uplinks: Collection[str] = ()  # patterns
    pods: Collection[str] = ()
    node_addresses: frozenset[IPAddress] = frozenset()
    generation: Generation | None = None
    looks: int = 0


@dataclass(frozen=True, slots=True)
class Unattached:
    """An interface that has no programs although it should: `since` by the monotonic clock."""

    name: str
    since: float
    uplink: bool
    why: str  # empty: its turn has not come


class Running(NamedTuple):
    """An interface as it last was, and our program at its ingress."""

    link: Link
    program: str


class Attaching:
    """What one thread knows and does. Each `turn` is one piece of work, so that a new pod waits for
    one other interface at most."""

    def __init__(
        self, attacher: Attacher, drivers: Drivers, watch: netlink.Watch, beat: Beat
    ) -> None:
        self._attacher = attacher
        self._drivers = drivers
        self._watch = watch
        self._beat = beat
        self._wanted = Wanted()
        self._links: dict[int, Link] = {}
        self._pending: dict[int, float] = {}  # since when, the newest last
        self._failed: dict[int, Unattached] = {}
        self._unwanted: list[Attachment] = []
        self._repaired: dict[str, float] = {}  # by name, when
        self.problem = ""  # with what should not be there; until the next look that works
        self._stale: float | None = None  # when the network is to be looked at again
        self._thorough = False  # ... and what runs on each interface
        self._earliest = 0.0
        self._retry = 0.0
        self._check_at = 0.0
        self._unchecked: list[int] = []  # interfaces, in this round
        self._log = structlog.get_logger()
        self.repairs = 0  # times that programs were gone, or others in their place
        self.uplinks: frozenset[int] = frozenset()
        self.attached: dict[int, tuple[str, str]] = {}  # index to name and program at ingress
        self.placed: Generation | None = None
        self.network = Network((), (), ())
        self._look()

    @property
    def pending(self) -> int:
        """Interfaces whose turn is to come."""
        return len(self._pending)

    def unattached(self) -> tuple[Unattached, ...]:
        """Interfaces that should have programs and have not, the longest first."""
        waiting = (
            Unattached(self._links[index].ifname, since, index in self.uplinks, "")
            for index, since in self._pending.items()
            if index not in self.attached and index not in self._failed
        )
        return tuple(sorted((*self._failed.values(), *waiting), key=lambda item: item.since))

    def repaired(self, now: float) -> tuple[str, ...]:
        """Interfaces whose programs somebody took away lately."""
        self._repaired = {n: t for n, t in self._repaired.items() if now - t < REPAIRED_SECONDS}
        return tuple(sorted(self._repaired))

    def running(self) -> dict[int, Running]:
        """Interfaces that have programs, by index."""
        return {
            index: Running(self._links[index], program)
            for index, (_, program) in self.attached.items()
            if index in self._links
        }

    def want(self, wanted: Wanted) -> None:
        """Make it so from now on."""
        before, self._wanted = self._wanted, wanted
        if wanted is before:
            return
        if wanted.looks != before.looks:
            self._stale, self._thorough = 0.0, True
        if wanted.generation is not before.generation:
            if wanted.generation is not None:
                self._drivers.replace(wanted.generation)
            self._sort(thorough=True)
        elif wanted != before:
            self._sort(thorough=False)

    def turn(self, told: int) -> None:
        """Wait until there is something to do (or `told` can be read), and do one thing."""
        self._wait(told)
        self._take(self._watch.read(_LINKS_A_TURN))
        now = time.monotonic()
        if self._stale is not None and now >= max(self._stale, self._earliest):
            self._look()
        elif self._pending:
            index, since = self._pending.popitem()
            self._attach(self._links[index], since)
        elif self._unwanted:
            self._detach(self._unwanted.pop())
        elif self._failed and now >= self._retry:
            self._retry = now + RETRY_SECONDS
            self._pending.update((index, item.since) for index, item in self._failed.items())
        elif self._is_driver_due(now):
            self._drivers.look(self._links, self.uplinks)
        elif self._is_check_due(now):
            self._check(now)
        if not self._pending and self.placed is not self._wanted.generation:
            self.placed = self._wanted.generation
            self._check_at = now + CHECKED_SECONDS

    def _wait(self, told: int) -> None:
        timeout = self._timeout()
        self._beat.within(float("inf") if timeout is None else timeout + _STUCK_SECONDS)
        poll = select.poll()
        for descriptor in (told, self._watch.fileno()):
            poll.register(descriptor, select.POLLIN)
        ready = poll.poll(None if timeout is None else timeout * 1000)
        self._beat.within(_STUCK_SECONDS)
        if any(descriptor == told for descriptor, _ in ready):
            with contextlib.suppress(BlockingIOError):  # a thread that was given up took it
                os.eventfd_read(told)

    def _timeout(self) -> float | None:
        if self._pending or self._unwanted or self._watch.waiting:
            return 0.0
        if self.placed is not self._wanted.generation:  # there is nowhere to put it: say so
            return 0.0
        times = [] if self._stale is None else [max(self._stale, self._earliest)]
        times += [self._retry] if self._failed else []
        times += [self._drivers.due()] if self._wanted.generation is not None else []
        times += [self._check_at] if self._is_checked() else []
        first = min(times, default=math.inf)
        return None if math.isinf(first) else max(0.0, first - time.monotonic())

    def _is_driver_due(self, now: float) -> bool:
        return self._wanted.generation is not None and now >= self._drivers.due()

    def _is_checked(self) -> bool:
        return bool(self.attached) and self.placed is self._wanted.generation

    def _is_check_due(self, now: float) -> bool:
        return self._is_checked() and now >= self._check_at

    def _check(self, now: float) -> None:
        """Whether one interface still runs what it was given: nobody reports that a link was
        detached."""
        pause = CHECKED_SECONDS / max(len(self.attached), CHECKED_SECONDS)
        self._check_at = now + max(pause, _CHECK_SECONDS)
        if not self._unchecked:
            self._unchecked = list(self.attached)
        index = self._unchecked.pop()
        link = self._links.get(index)
        if link is not None and index in self.attached:
            self._attach(link, now)

    def _take(self, changes: Changes) -> None:
        now = time.monotonic()
        if changes.lost:
            self._stale = 0.0  # a pod may be waiting
        elif changes.addresses or changes.routes:
            self._look_again(now)
        if changes.links or changes.gone:
            self._drivers.changed()
        if changes.gone:
            self._forget(changes.gone)
        for link in changes.links:
            new = link.ifindex not in self._links
            self._links[link.ifindex] = link
            hooks = self._hooks(link)
            if hooks is None:
                if new or link.ifindex in self.attached:
                    self._look_again(now)  # it may be an uplink, or was something else before
            elif self.attached.get(link.ifindex) != (link.ifname, hooks["ingress"]):
                # Again at the end, where the newest are.
                self._pending[link.ifindex] = self._pending.pop(link.ifindex, now)

    def _look_again(self, now: float) -> None:
        if self._stale is None:
            self._stale = now + REFRESH_SECONDS

    def _look(self) -> None:
        """Look at the whole network again."""
        began = time.monotonic()
        thorough, self._stale, self._thorough = self._thorough, None, False
        self.network = netlink.read_network()
        self._links = {link.ifindex: link for link in self.network.links}
        known = self.attached.keys() | self._pending.keys() | self._failed.keys()
        self._forget(known - self._links.keys())
        self._sort(thorough)
        ended = time.monotonic()
        self._earliest = ended + max(REFRESH_SECONDS, _LOOK_SHARE * (ended - began))

    def _sort(self, thorough: bool) -> None:
        """Decide anew what each interface is; `thorough`: also look at what runs there."""
        network, wanted = self.network, self._wanted
        self.uplinks = uplinks(
            self._links.values(),
            network.default_routes,
            network.addresses,
            wanted.node_addresses,
            wanted.uplinks,
        )
        self._drivers.changed()
        if wanted.generation is None:
            return
        now = time.monotonic()
        found = {i: hooks for i, link in self._links.items() if (hooks := self._hooks(link))}
        queue = {
            index: now
            for index, hooks in found.items()
            if thorough or self.attached.get(index) != (self._links[index].ifname, hooks["ingress"])
        }
        waiting = {index: since for index, since in self._pending.items() if index in found}
        self._pending = {i: t for i, t in queue.items() if i not in waiting} | waiting
        others = self.attached.keys() - found.keys()
        if thorough or others:
            self._find_unwanted(found)
        for index in (*others, *(self._failed.keys() - found.keys())):
            self.attached.pop(index, None)
            self._failed.pop(index, None)

    def _find_unwanted(self, wanted: Collection[int]) -> None:
        """Programs on interfaces that are neither a pod's nor an uplink, any more."""
        try:
            self._attacher.prune()
            found = self._attacher.attachments()
        except (LbError, OSError) as error:
            self._log.warning("cannot look at what is attached", error=str(error))
            self.problem = f"what is attached to interfaces cannot be looked at: {error}"
            return
        self.problem = ""
        self._unwanted = [item for item in found if item.ifindex and item.ifindex not in wanted]

    def _hooks(self, link: Link) -> dict[str, str] | None:
        return hooks_of(link, self.uplinks, self._wanted.pods)

    def _attach(self, link: Link, since: float) -> None:
        generation, hooks = self._wanted.generation, self._hooks(link)
        if generation is None or hooks is None:
            return
        done = {}
        try:
            for direction, program in hooks.items():
                fd = generation.fds[program]
                done[direction] = self._attacher.attach(link.ifname, link.ifindex, direction, fd)
        except (LbError, OSError) as error:
            if getattr(error, "errno", 0) != errno.ENODEV:  # else a message says so soon
                self._note_failed(link, since, error)
            return
        self._failed.pop(link.ifindex, None)
        if restored := [direction for direction, what in done.items() if what == "restored"]:
            self._repaired[link.ifname] = time.monotonic()
            self.repairs += 1
            self._log.warning(
                "missing programs are attached again", interface=link.ifname, directions=restored
            )
        elif "attached" in done.values():
            spent = round((time.monotonic() - since) * 1000, 2)
            self._log.info("programs attached", interface=link.ifname, milliseconds=spent)
        self.attached[link.ifindex] = (link.ifname, hooks["ingress"])

    def _note_failed(self, link: Link, since: float, error: LbError | OSError) -> None:
        why = getattr(error, "message", str(error))
        before = self._failed.get(link.ifindex)
        if before is None or before.why != why:
            self._log.error("cannot attach", interface=link.ifname, error=why)
        if not self._failed:
            self._retry = time.monotonic() + RETRY_SECONDS
        since = before.since if before else since
        uplink = link.ifindex in self.uplinks
        self._failed[link.ifindex] = Unattached(link.ifname, since, uplink, why)
        self.attached.pop(link.ifindex, None)

    def _detach(self, item: Attachment) -> None:
        try:
            self._attacher.detach(item.ifname, item.direction)
        except (LbError, OSError) as error:
            self._log.warning("cannot detach", interface=item.ifname, error=str(error))
            self.problem = f"programs on {item.ifname}, not our interface, cannot go: {error}"
        else:
            self._log.info("programs removed, interface is no longer ours", interface=item.ifname)

    def _forget(self, gone: Iterable[int]) -> None:
        """These interfaces are gone; so are their programs, but for the pins."""
        gone = list(gone)
        for index in gone:
            self._links.pop(index, None)
            self._pending.pop(index, None)
            self._failed.pop(index, None)
            self.attached.pop(index, None)
        try:
            self._attacher.forget(gone)
        except (LbError, OSError) as error:
            self._log.warning("cannot tidy the pins of links", error=str(error))
            self.problem = f"pins of interfaces that are gone cannot be removed: {error}"


def hooks_of(
    link: Link, uplink_indices: Collection[int], pods: Collection[str]
) -> dict[str, str] | None:
    """The programs that an interface is to run, by direction; `pods` are patterns of names."""
    if link.ifindex in uplink_indices:
        return _TUNNEL_HOOKS if link.bare else _UPLINK_HOOKS
    return _POD_HOOKS if pod_interfaces([link], uplink_indices, pods) else None


def describe(items: Iterable[Unattached]) -> Iterator[str]:
    """A sentence for each."""
    for item in items:
        kind = "uplink" if item.uplink else "pod interface"
        why = item.why or "its turn has not come yet"
        yield f"no programs on {kind} {item.name}: {why}"
