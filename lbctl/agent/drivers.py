"""XDP on uplinks: which drivers run our program, and which devices may transmit for them.

Looked at by the thread that attaches programs (attaching.py), between two interfaces. A device
that fails is left to TC, which does the same.
"""

from __future__ import annotations

import fnmatch
import struct
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from ebpf.errors import KernelError, LbError
from ebpf.hooks.xdp import Attachment, DriverAttacher
from ebpf.kernel import netdev, netlink
from ebpf.kernel.netlink import Link
from ebpf.programs import Generation
from lbctl.agent import drivertest
from lbctl.agent.drivertest import Trial
from lbctl.datapath import consts
from lbctl.datapath.tables import HashTable
from lbctl.status import DriverState

OFF: Final = "off"
AUTO: Final = "auto"
ON: Final = "on"

_PROGRAM = "xdp_uplink"
_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # for a device that failed and has not changed
_ASK_SECONDS = 10.0  # between questions to neighbours
_MOST_NEIGHBOURS = 256  # each time and device
_RECORD = struct.Struct("=6sH")  # struct xdp_device


@dataclass(frozen=True, slots=True)
class _Device:
    """A device with our program. `trial`: frames of the test are on their way."""

    link: Link
    features: int
    sends: bool = False
    trial: Trial | None = None
    why: str = ""  # it does not send

    @property
    def record(self) -> bytes:
        flags = consts.XDP_DEVICE_SENDS if self.sends else 0
        return _RECORD.pack(self.link.mac, flags)


class Drivers:
    """What `--xdp` asks for, in the network namespace of the thread that calls."""

    def __init__(
        self,
        mode: str,
        patterns: Collection[str],
        attacher: DriverAttacher,
        devices: HashTable,
        told: Callable[[], None],
    ) -> None:
        """`devices` is the map of that name. Without `patterns`, all uplinks. `told` is called when
        a device may be used for something else than so far: next hops are kept."""
        self.mode = mode
        self.states: tuple[DriverState, ...] = ()
        self.problem = ""  # with programs that should be others, or not there; until it is none
        self._patterns = tuple(patterns)
        self._attacher = attacher
        self._table = devices
        self._told = told
        self._devices: dict[int, _Device] = {}
        self._failed: dict[int, tuple[Link, str, float]] = {}  # until when it is not tried again
        self._generation: Generation | None = None
        self._look_at = 0.0
        self._ask_at = 0.0
        self._log = structlog.get_logger()

    def due(self) -> float:
        """When to `look` again, by the monotonic clock."""
        return self._look_at

    def changed(self) -> None:
        """Links may be others."""
        self._look_at = 0.0

    def replace(self, generation: Generation) -> None:
        """Put these programs in place of the former ones, wherever those are: from now on what is
        in their maps may be out of date. Where that fails there are none."""
        self._generation = generation
        self._look_at = 0.0
        for item in self._attachments() if self.mode != OFF else ():  # else `look` removes them
            if item.ifindex:
                try:
                    self._attacher.attach(item.ifname, item.ifindex, generation.fds[_PROGRAM])
                except LbError as error:
                    log = self._log.bind(interface=item.ifname, error=error.message)
                    log.error("cannot replace a driver's program")
                    self._detach(item.ifname)

    def look(self, links: Mapping[int, Link], uplinks: Collection[int]) -> None:
        """Attach to what is new, go on with tests, let go of what is gone."""
        now = time.monotonic()
        self._look_at = now + _LOOK_SECONDS
        wanted = self._wanted(links, uplinks)
        self.problem = ""
        self._let_go(wanted)
        if self.mode == OFF:
            self._look_at = float("inf")
            return
        vlans = {link.peer for link in links.values() if link.kind == "vlan"}
        for index, link in wanted.items():
            try:
                self._follow(link, index in vlans, now)
            except (LbError, OSError) as error:
                self._fail(link, getattr(error, "message", str(error)), now)
        self._store()
        self._say()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_SECONDS
            self._ask_neighbours()

    def _wanted(self, links: Mapping[int, Link], uplinks: Collection[int]) -> dict[int, Link]:
        if self.mode == OFF or self._generation is None:
            return {}
        found = (links[index] for index in uplinks if index in links)
        return {
            link.ifindex: link
            for link in found
            if link.up
            and (
                not self._patterns
                or any(fnmatch.fnmatchcase(link.ifname, name) for name in self._patterns)
            )
        }

    def _let_go(self, wanted: Mapping[int, Link]) -> None:
        for index in self._devices.keys() - wanted.keys():
            del self._devices[index]
        for index in self._failed.keys() - wanted.keys():
            del self._failed[index]
        if self._generation is None:
            return
        self._store()
        for item in self._attachments():
            if item.ifindex not in wanted:
                self._detach(item.ifname)

    def _follow(self, link: Link, above: bool, now: float) -> None:
        """One step with one device."""
        generation = self._generation
        assert generation is not None
        failed = self._failed.get(link.ifindex)
        if failed and failed[0] == link and now < failed[2]:
            return
        why = drivertest.unfit(link, above)
        if why:
            self._fail(link, why, now)
            return
        features = drivertest.features(link.ifindex)
        why = drivertest.missing(features)
        if why:
            self._fail(link, why, now)
            return
        known = self._devices.get(link.ifindex)
        program = generation.fds[_PROGRAM]
        done = self._attacher.attach(link.ifname, link.ifindex, program)
        if known and done != "attached" and (known.link, known.features) == (link, features):
            self._go_on(known, now)
            return
        features = drivertest.features(link.ifindex)  # a program of ours may have changed them
        why = drivertest.try_program(link, program)
        if why:
            self._fail(link, why, now)
            return
        self._failed.pop(link.ifindex, None)
        device = _Device(link, features, why=drivertest.CANNOT_SEND)
        if features & netdev.TRANSMIT:
            device = _Device(link, features, trial=drivertest.begin(link, generation.fds, now))
        self._devices[link.ifindex] = device

    def _go_on(self, device: _Device, now: float) -> None:
        """Has the device sent the frames of its test?"""
        if device.trial is None:
            return
        index = device.link.ifindex
        if device.trial.passed(index):
            self._devices[index] = _Device(device.link, device.features, sends=True)
        elif now >= device.trial.until:
            why = drivertest.CANNOT_SEND
            self._devices[index] = _Device(device.link, device.features, why=why)

    def _fail(self, link: Link, why: str, now: float) -> None:
        """Leave it to TC."""
        self._failed[link.ifindex] = (link, why, now + _RETRY_SECONDS)
        self._devices.pop(link.ifindex, None)
        self._detach(link.ifname)

    def _attachments(self) -> list[Attachment]:
        try:
            return self._attacher.attachments()
        except (LbError, OSError) as error:
            self._log.warning("cannot look at drivers' programs", error=str(error))
            self.problem = f"XDP programs cannot be looked at: {error}"
            return []

    def _detach(self, ifname: str) -> None:
        try:
            if self._attacher.detach(ifname):
                self._log.info("XDP program removed", interface=ifname)
        except (LbError, OSError) as error:
            log = self._log.bind(interface=ifname, error=str(error))
            log.warning("cannot remove a driver's program")
            self.problem = f"the XDP program of {ifname} cannot be removed: {error}"

    def _store(self) -> None:
        """Make the map say this. What it has no room for goes up."""
        kept = sorted(self._devices)[: self._table.max_entries]
        wanted = {index: self._devices[index].record for index in kept}
        keys, values = self._table.read_all()
        found = {int(key): value.tobytes() for key, value in zip(keys, values, strict=True)}
        gone = found.keys() - wanted.keys()
        if gone:
            self._table.delete_many(np.array(list(gone), np.uint32))
        new = {index: record for index, record in wanted.items() if found.get(index) != record}
        if new:
            records = np.frombuffer(b"".join(new.values()), self._table.spec.value.dtype)
            self._table.put_many(np.array(list(new), np.uint32), records)
        if gone or new:
            self._told()

    def _say(self) -> None:
        states = [_state(device) for device in self._devices.values()]
        states += [DriverState(link.ifname, "tc", why) for link, why, _ in self._failed.values()]
        said = tuple(sorted(states, key=lambda state: state.name))
        before = {state.name: state for state in self.states}
        for state in said:
            if before.get(state.name) != state:
                self._log.info("XDP", interface=state.name, state=state.state, why=state.why)
        self.states = said

    def _ask_neighbours(self) -> None:
        for index, device in self._devices.items():
            try:
                if device.sends:
                    netlink.ask_again(index, _MOST_NEIGHBOURS)
            except (KernelError, OSError) as error:
                self._log.debug("cannot ask neighbours", index=index, error=str(error))


def _state(device: _Device) -> DriverState:
    if device.trial:
        return DriverState(device.link.ifname, "testing", "")
    return DriverState(device.link.ifname, "sends" if device.sends else "receives", device.why)
