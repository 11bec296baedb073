"""The way past the stack, by TC or by drivers: opened while nobody else would have a say about
packets, and for a moment at a time.

A thread of its own looks: nftables, routing rules and traffic control announce their changes, the
rest is looked at every LOOK_SECONDS. A change first closes the way, then it is looked at. Whatever
may have changed a next hop begins another epoch, in which programs ask the kernel anew. If the
thread hangs or the agent dies, what it opened ends by itself. Not so where drivers are to send on
whoever minds (`--xdp on`): they ask the kernel for each packet then.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import structlog

from ebpf.errors import KernelError
from ebpf.hooks import others
from ebpf.hooks.others import Queues
from ebpf.kernel import libbpf, paths
from ebpf.kernel.netlink import Link
from lbctl.agent.drivers import AUTO
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
_UPLINK_FLAGS = consts.FAST_FROM | consts.FAST_LEAVE  # of a driver that nobody minds
_POD_PROGRAM, _UPLINK_PROGRAM = "entry_from_pod", "entry_from_net"


class Gate:
    """What the config record says of it."""

    def __init__(self, config: ArrayTable) -> None:
        self._record = config.records[0]

    @property
    def is_open(self) -> bool:
        return bool(self._record["fast_open"])

    @property
    def drivers(self) -> int:
        """XDP_*: what drivers may do."""
        return int(self._record["xdp"])

    def begin_epoch(self) -> None:
        """No hop is known of it: no number comes twice, whoever begins one, as the maps outlive
        agents. If two threads do at once, what each has changed was so before either's."""
        self._record["fast_epoch"] = (int(self._record["fast_epoch"]) + 1) % _U32

    def open(self) -> None:
        """For TC, up to the moment that `keep_open` says."""
        self._record["fast_open"] = 1

    def let_drivers(self, flags: int) -> None:
        """... and for drivers, as far as these say."""
        self._record["xdp"] = flags

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
        """All packets take the stack, as far as TC is concerned."""
        self._record["fast_open"] = 0


class FastPath:
    """`start` it if anything is on; `close` it in any case. `drivers` is --xdp."""

    def __init__(
        self,
        mode: str,
        tables: Tables,
        interfaces: Interfaces,
        programs: LaterGeneration,
        keeper: Keeper,
        now: Callable[[], float] = time.monotonic,
        drivers: str = OFF,
    ) -> None:
        self._now = now
        self.mode = mode
        self.state = FastPathState(mode == ON)
        # Who has no say about what drivers send on; or for whom they send nothing on, by "auto".
        self.minding: tuple[str, ...] = ()
        self._drivers = drivers
        self._flags: dict[str, int] = {}  # FAST_* by name of an interface
        self._devices = tables.fast_devices
        self._interfaces = interfaces
        self._programs = programs
        self._gate = Gate(tables.config)
        self._shut()
        self._routes_at = 0.0
        self._told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = keeper.work("fast path", self._follow)

    @property
    def _is_on(self) -> bool:
        return ON in (self.mode, self._drivers) or self._drivers == AUTO

    def start(self) -> None:
        """Look from now on, in the network namespace of the caller."""
        if self._is_on:
            self._thread.start()

    def close(self) -> None:
        """All packets take the stack again, unless drivers are to send on in any case."""
        if self._is_on:
            self._thread.stop()
            ended = self._thread.join(_LEAVES)
            self._shut()
            if not ended:
                return
        os.close(self._told)

    def _follow(self, beat: Beat) -> None:
        """The thread's work."""
        beat.interrupt = lambda: os.eventfd_write(self._told, 1)
        self._shut()
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
            self._shut()
            look_at = min(look_at, now)
        self._gate.lower_mtu(seen.mtu)
        if seen.lost:
            self._routes_at = now
        if seen.hops:
            self._gate.begin_epoch()
        if now < look_at:
            return look_at
        self._look(beat)
        soon = seen.rules or not self._programs.placed
        return self._now() + (_LEAST_SECONDS if soon else LOOK_SECONDS)

    def _shut(self) -> None:
        """Nobody may go by what was found out; of drivers, those that ask for each packet go on."""
        always = consts.XDP_SENDS_ALWAYS if self._drivers == ON else 0
        self._gate.let_drivers(self._gate.drivers & always)
        self._gate.shut()

    def _look(self, beat: Beat) -> None:
        found = self._obstacles()
        try:
            used = not found or self._drivers == ON
            changed = used and (self._look_at_routes() | self._store_devices())
        except KernelError as error:  # an interface went meanwhile: it is looked at again
            found, changed = [f"interfaces cannot be looked at: {error.message}"], False
        if beat.stopping.is_set():  # another thread does this now
            return
        self._open(not found and self.mode == ON, self._for_drivers(found), changed)
        self._say(found)

    def _open(self, stack: bool, drivers: int, changed: bool) -> None:
        """As far as that; in another epoch if hops may have `changed`, or nobody has looked."""
        more = (stack and not self._gate.is_open) or drivers & ~self._gate.drivers
        if changed or more:
            self._gate.begin_epoch()
        self._gate.keep_open()
        if stack:
            self._gate.open()
        else:
            self._gate.shut()
        self._gate.let_drivers(drivers)

    def _for_drivers(self, found: Sequence[str]) -> int:
        """XDP_*, with these obstacles."""
        if self._drivers == AUTO:
            return 0 if found else consts.XDP_SENDS_ON | consts.XDP_KEEPS_HOPS
        if self._drivers == ON:
            keeps = not found or (self._programs.placed and not obstacles.find_routing())
            return consts.XDP_SENDS_ALWAYS | (consts.XDP_KEEPS_HOPS if keeps else 0)
        return 0

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
        running = self._interfaces.running
        wanted = {
            index: flags
            for index, (link, program) in running.items()
            if (flags := flags_of(link, program, ours, queues))
        }
        self._flags = {running[index].link.ifname: flags for index, flags in wanted.items()}
        return store(self._devices, wanted)

    def _minding(self, found: Sequence[str]) -> Iterator[str]:
        """Who would have a say about what drivers send on."""
        if self._drivers == OFF or not self._programs.placed:
            return
        yield from found
        for driver in self._interfaces.drivers:
            flags = self._flags.get(driver.name, 0)
            if driver.state != "tc" and flags & _UPLINK_FLAGS != _UPLINK_FLAGS:
                yield f"{driver.name}: others run programs at its tc hooks"

    def _say(self, found: Sequence[str]) -> None:
        log = structlog.get_logger()
        minding = tuple(self._minding(found))
        if minding != self.minding:
            log.info("XDP", mode=self._drivers, others=list(minding))
            self.minding = minding
        state = FastPathState(self.mode == ON, not found, tuple(found))
        if self.mode != ON or state == self.state:
            return
        if state.open:
            log.info("established flows bypass the stack")
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
    if not found.egress:
        flags |= consts.FAST_LEAVE
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
