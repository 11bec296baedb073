"""The way past the stack: opened while nobody else would have a say about packets, and for a moment
at a time.

A thread of its own looks: nftables, routing rules and traffic control announce their changes, the
rest is looked at every LOOK_SECONDS. A change first closes the way, then it is looked at. Whatever
may have changed a next hop begins another epoch, in which programs ask the kernel anew. If the
thread hangs or the agent dies, what it opened ends by itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import numpy as np
import structlog

from ebpf.errors import KernelError
from ebpf.hooks import others
from ebpf.hooks.others import Queues
from ebpf.kernel import libbpf, paths
from ebpf.kernel.netlink import Link
from lbctl.agent.generation import LaterGeneration
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.datapath import clock, consts
from lbctl.datapath.tables import ArrayTable, HashTable, Tables
from lbctl.host import obstacles
from lbctl.status import FastPathState
from lbctl.threads import Beat

OFF: Final = "off"
ON: Final = "on"
LOOK_SECONDS: Final = 1.0  # between looks at what nobody announces
ROUTES_SECONDS: Final = 60.0  # between lists of all routes
LIFE_SECONDS: Final = 3.0  # what is open ends, if nobody looks
_LEAST_SECONDS = 0.1  # between looks, however often others change their rules
_STUCK_SECONDS = 20.0
_LEAVES = 5.0
_U32 = 1 << 32
_NOT_READY = "the programs are not on all interfaces yet"
_POD_PROGRAM, _UPLINK_PROGRAM = "entry_from_pod", "entry_from_net"


class Gate:
    """What the config record says of it."""

    def __init__(self, config: ArrayTable) -> None:
        self._record = config.records[0]

    @property
    def is_open(self) -> bool:
        return bool(self._record["fast_open"])

    def open_anew(self) -> None:
        """In an epoch that no hop is known of: no number comes twice, whoever opens it, as the maps
        outlive agents."""
        self._record["fast_epoch"] = (int(self._record["fast_epoch"]) + 1) % _U32
        self.keep_open()
        self._record["fast_open"] = 1

    def keep_open(self) -> None:
        """For LIFE_SECONDS from now on."""
        until = clock.current_beat() + clock.beats(LIFE_SECONDS)
        self._record["fast_until"] = until % _U32

    def lower_mtu(self, mtu: int) -> None:
        """A route has so little. Its epoch begins after that."""
        self._record["fast_mtu"] = min(mtu, int(self._record["fast_mtu"]))

    def set_mtu(self, mtu: int) -> bool:
        """The least of all routes; whether it was another."""
        before, self._record["fast_mtu"] = int(self._record["fast_mtu"]), mtu
        return before != mtu

    def shut(self) -> None:
        """All packets take the stack."""
        self._record["fast_open"] = 0


class FastPath:
    """`start` it if it is on; `close` it in any case."""

    def __init__(
        self,
        mode: str,
        tables: Tables,
        interfaces: Interfaces,
        programs: LaterGeneration,
        keeper: Keeper,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self.mode = mode
        self.state = FastPathState(mode == ON)
        self._devices = tables.fast_devices
        self._interfaces = interfaces
        self._programs = programs
        self._gate = Gate(tables.config)
        self._gate.shut()
        self._routes_at = 0.0
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = keeper.work("fast path", self._follow)

    def start(self) -> None:
        """Look from now on, in the network namespace of the caller."""
        if self.mode == ON:
            self._thread.start()

    def close(self) -> None:
        """All packets take the stack again."""
        if self.mode == ON:
            self._thread.stop()
            ended = self._thread.join(_LEAVES)
            self._gate.shut()
            if not ended:
                return
        os.close(self._told)

    def _follow(self, beat: Beat) -> None:
        """The thread's work."""
        beat.interrupt = lambda: os.eventfd_write(self._told, 1)
        self._gate.shut()
        with paths.Watch() as watch:  # before the first look: nothing is missed in between
            poll = select.poll()
            for descriptor in (self._told, *(file.fileno() for file in watch.files)):
                poll.register(descriptor, select.POLLIN)
            look_at = 0.0
            while not beat.stopping.is_set():
                beat.within(_STUCK_SECONDS)
                poll.poll(max(0.0, look_at - self._now()) * 1000)
                look_at = self._turn(beat, watch.read(), look_at)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._told)

    def _turn(self, beat: Beat, seen: paths.Seen, look_at: float) -> float:
        """Returns when to look again."""
        now = self._now()
        if beat.stopping.is_set():
            return look_at
        if seen.rules:
            self._gate.shut()
            look_at = min(look_at, now)
        self._gate.lower_mtu(seen.mtu)
        if seen.lost:
            self._routes_at = now
        if seen.hops and self._gate.is_open:
            self._gate.open_anew()
        if now < look_at:
            return look_at
        self._look(beat)
        soon = seen.rules or not self._programs.placed
        return self._now() + (_LEAST_SECONDS if soon else LOOK_SECONDS)

    def _look(self, beat: Beat) -> None:
        found = self._obstacles()
        try:
            changed = not found and (self._look_at_routes() | self._store_devices())
        except KernelError as error:  # an interface went meanwhile: it is looked at again
            found, changed = [f"interfaces cannot be looked at: {error.message}"], False
        if beat.stopping.is_set():  # another thread does this now
            return
        if found:
            self._gate.shut()
        elif changed or not self._gate.is_open:
            self._gate.open_anew()
        else:
            self._gate.keep_open()
        self._say(FastPathState(True, not found, tuple(found)))

    def _obstacles(self) -> list[str]:
        return obstacles.find() if self._programs.placed else [_NOT_READY]

    def _look_at_routes(self) -> bool:
        """Now and then: those that come are heard of, and those that go make nothing wrong."""
        now = self._now()
        if now < self._routes_at:
            return False
        self._routes_at = now + ROUTES_SECONDS
        return self._gate.set_mtu(paths.least_mtu())

    def _store_devices(self) -> bool:
        """Make `fast_devices` say what each device may be used for; whether it said another."""
        ours = own_programs(self._programs.descriptors)
        queues = others.queues()
        wanted = {
            index: flags
            for index, (link, program) in self._interfaces.running.items()
            if (flags := flags_of(link, program, ours, queues))
        }
        return store(self._devices, wanted)

    def _say(self, state: FastPathState) -> None:
        if state == self.state:
            return
        log = structlog.get_logger()
        if state.open:
            log.info("established flows pass the stack")
        else:
            log.info("all packets take the stack", why=list(state.obstacles))
        self.state = state


def own_programs(descriptors: Iterable[int]) -> set[int]:
    """The kernel's numbers of these. The loop may close one meanwhile, which runs no more then."""
    found = set()
    for descriptor in descriptors:
        with contextlib.suppress(KernelError):
            found.add(libbpf.prog_id(descriptor))
    return found


def flags_of(link: Link, program: str, ours: Collection[int], queues: Queues) -> int:
    """FAST_* of one interface with our `program`. A bridge's port is none: the route leads to the
    bridge."""
    if program not in (_POD_PROGRAM, _UPLINK_PROGRAM) or link.bare or link.master or not link.up:
        return 0
    found = others.on_interface(link.ifindex, ours, queues)
    flags = consts.FAST_NEIGH
    if not found.ingress:
        flags |= consts.FAST_FROM
    behind = program == _POD_PROGRAM and link.kind == "veth" and link.peer_netns is not None
    if behind and not found.egress and not found.queue:
        flags |= consts.FAST_PEER
    return flags


def store(table: HashTable, wanted: Mapping[int, int]) -> bool:
    """Make `fast_devices` say this; returns whether it said another. Beyond its room devices are
    left to the stack."""
    keys, values = table.read_all()
    found = dict(zip(keys.tolist(), values.tolist(), strict=True))
    kept = dict(sorted(wanted.items())[: table.max_entries])
    gone = [key for key in found if key not in kept]
    new = {key: flags for key, flags in kept.items() if found.get(key) != flags}
    if gone:
        table.delete_many(np.array(gone, np.uint32))
    if new:
        table.put_many(np.array(list(new), np.uint32), np.array(list(new.values()), np.uint32))
    return bool(gone or new)
