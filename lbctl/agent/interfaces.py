"""Programs on pods' interfaces and on uplinks: which ones those are, and following them.

A thread of its own does it: the kernel takes some ten milliseconds to attach a program, and longer
while others create interfaces, and no change of a service may wait for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from ebpf.hooks.tc import Attacher
from ebpf.kernel import netlink
from ebpf.kernel.netlink import IPAddress, Network
from ebpf.programs import Generation
from lbctl.addresses import IPV4, family_of
from lbctl.agent.attaching import Attaching, Running, Unattached, Wanted
from lbctl.agent.drivers import ON, Drivers
from lbctl.agent.keeper import Keeper
from lbctl.status import DriverState
from lbctl.threads import Beat

_LEAVES = 5.0  # seconds until a thread that ends has ended
_PUBLISH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Found:
    """What the thread last said."""

    network: Network
    running: Mapping[int, Running] = field(default_factory=dict)
    unattached: tuple[Unattached, ...] = ()
    repaired: tuple[str, ...] = ()  # interfaces whose programs others took away
    repairs: int = 0  # times that this was so
    placed: Generation | None = None  # these programs are everywhere by now, where they could be
    drivers: tuple[DriverState, ...] = ()
    problem: str = ""  # with what should not be attached


class Interfaces:
    """The interfaces of one network namespace, and our programs on those of pods."""

    def __init__(
        self,
        attacher: Attacher,
        uplinks: Collection[str],
        pod_patterns: Collection[str],
        drivers: Drivers,
        keeper: Keeper,
    ) -> None:
        self.xdp = drivers.mode
        self._drivers = drivers
        self._attacher = attacher
        self._wanted = Wanted(uplinks=uplinks, pods=pod_patterns)
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # to the thread
        self._heard = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # from it
        self._found = Found(netlink.read_network())
        self._were_attached = bool(attacher.attachments())
        self._thread = keeper.work("interfaces", self._follow)

    @property
    def network(self) -> Network:
        """As last looked at; another object after each look."""
        return self._found.network

    @property
    def attached(self) -> int:
        """Interfaces with programs."""
        return len(self._found.running)

    @property
    def running(self) -> Mapping[int, Running]:
        """Those with programs, by index."""
        return self._found.running

    @property
    def unattached(self) -> tuple[Unattached, ...]:
        """Interfaces that should have programs and have not, the longest first."""
        return self._found.unattached

    @property
    def repaired(self) -> tuple[str, ...]:
        """Interfaces whose programs somebody took away lately; they are back."""
        return self._found.repaired

    @property
    def repairs(self) -> int:
        """How often programs were put back on one, since the start."""
        return self._found.repairs

    @property
    def placed(self) -> Generation | None:
        """The programs that every interface was given, but for those in `unattached`."""
        return self._found.placed

    @property
    def problem(self) -> str:
        """Why what should not be attached any more still may be; empty if it is not."""
        return self._found.problem

    @property
    def drivers(self) -> tuple[DriverState, ...]:
        """XDP on each uplink that may have it."""
        return self._found.drivers

    @property
    def xdp_problems(self) -> list[str]:
        """A sentence for each uplink that should have it and has not."""
        if self.xdp != ON:
            return []
        return [f"no XDP on {d.name}: {d.why}" for d in self._found.drivers if d.state == "tc"]

    def were_attached(self) -> bool:
        """Whether an earlier agent left programs in place."""
        return self._were_attached

    def fileno(self) -> int:
        """Readable when any of this may have changed."""
        return self._heard

    def handle(self) -> None:
        """Nothing to do but for who follows it."""
        os.eventfd_read(self._heard)

    def start(self) -> None:
        """Begin to follow, in the network namespace of the caller."""
        self._thread.start()

    def set_node_addresses(self, addresses: Iterable[bytes]) -> None:
        """The addresses the Node object names: an interface with one is an uplink, veth or not."""
        self._tell(node_addresses=frozenset(_narrow(a) for a in addresses))

    def set_patterns(self, uplinks: Collection[str], pods: Collection[str]) -> None:
        """Other names of uplinks and of pods' interfaces than so far."""
        self._tell(uplinks=uplinks, pods=pods)

    def attach_all(self, generation: Generation) -> None:
        """Put these programs on all pod interfaces and uplinks, now and from now on; `placed` says
        when they are."""
        self._tell(generation=generation)

    def refresh(self) -> None:
        """Look at the whole network again, and at what runs on each interface."""
        self._tell(looks=self._wanted.looks + 1)

    def close(self) -> None:
        """Stop following; programs stay."""
        self._thread.stop()
        if self._thread.join(_LEAVES):  # else it may still use them, and ends with the process
            os.close(self._told)
            os.close(self._heard)

    def _tell(self, **changes: object) -> None:
        wanted = replace(self._wanted, **changes)  # type: ignore[arg-type] # mypy: no kwargs here
        if wanted != self._wanted:
            self._wanted = wanted  # replaced as a whole: the thread reads it without a lock
            os.eventfd_write(self._told, 1)

    def _follow(self, beat: Beat) -> None:
        """The thread's work."""
        beat.interrupt = lambda: os.eventfd_write(self._told, 1)
        with netlink.Watch() as watch:  # before the first look: nothing is missed in between
            attaching = Attaching(self._attacher, self._drivers, watch, beat)
            published = 0.0
            while not beat.stopping.is_set():
                attaching.want(self._wanted)
                attaching.turn(self._told)
                now = time.monotonic()
                # Not after each of five hundred: the loop has other things to do.
                if not attaching.pending or now - published >= _PUBLISH_SECONDS:
                    published = now
                    if not beat.stopping.is_set():  # else another thread does this now
                        self._publish(attaching, now)

    def _publish(self, said: Attaching, now: float) -> None:
        found = Found(
            said.network,
            said.running(),
            said.unattached(),
            said.repaired(now),
            said.repairs,
            said.placed,
            self._drivers.states,
            said.problem or self._drivers.problem,
        )
        if found != self._found:
            self._found = found
            os.eventfd_write(self._heard, 1)


def _narrow(address: bytes) -> IPAddress:
    return ip_address(address[12:] if family_of(address) == IPV4 else address)
