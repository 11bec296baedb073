"""Sets of backends switched without pause in one process, while another looks them up.

Each set has a number, which its backends carry in their address; each backend says in its port
which member of how many it is. So whoever chose one can be asked whether that was possible.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from ebpf import maps
from ebpf.compile import compiler, source
from ebpf.compile.source import Unit
from ebpf.kernel import testrun
from ebpf.layouts import Bundle
from ebpf.programs import load
from lbctl.datapath.records import frontend_key
from tests.kernel.support.apart import kept_apart
from tests.kernel.support.world import Service, World, mapped

STRIDE = 8  # slots and backends of one region: sets have 1 to 8 members
REGIONS = 32768
BATCH = 256  # sets written ahead, so that the switches follow each other closely
SIZES = {
    "slots": STRIDE * REGIONS,
    "backends": STRIDE * REGIONS,
    "control4a": 8192,
    "cells4a": 8 * 8192,
}
FIRST_SET = 0x3FFFFFFF
GRACE_SECONDS = 0.2
_POISON = 0x7FFFFFFF
Ints = np.ndarray[Any, np.dtype[np.int64]]
_NEIGHBOURS = 40
_EXTRA_MAPS = ("fire_epochs", "fire_counts")
COUNTS = ("lookups", "no_frontend", "wrong_frontend", "refused", "foreign", "torn", "sets")


def fire_bundle(directory: Path) -> Bundle:
    """fire.c compiled with the headers of bpf_src; `directory` is for links to both."""
    joined = directory / "bpf_src"
    joined.mkdir()
    for path in (*source.source_dir().iterdir(), Path(__file__).with_name("fire.c")):
        (joined / path.name).symlink_to(path)
    unit = Unit("fire", "fire.c", (("FAMILY", "4"),), source.family_unit("4").words)
    with kept_apart():
        return compiler.bundle(directory=joined, units=[unit])


class Updater:
    """Switches the sets of `service`. Regions rest for a grace period before they are used again.

    A careless one (for the test of the test) has one region and writes it in place.
    """

    def __init__(
        self, world: World, service: Service, epochs: maps.ArrayMap, *, careless: bool = False
    ) -> None:
        self.world, self.service, self.epochs = world, service, epochs
        self.batch = 1 if careless else BATCH
        self.regions = 1 if careless else REGIONS
        self.epoch = FIRST_SET
        self._round_began = time.monotonic()

    def switch(self) -> None:
        """A batch of sets: backends and slots of rested regions first, then one store for each."""
        first = self.epoch + 1
        if first % self.regions == 0 and self.regions > 1:
            self._rest()
        numbers = np.arange(first, first + self.batch)
        lengths = 1 + numbers * 5 % STRIDE
        bases = numbers % self.regions * STRIDE
        self._write(numbers, lengths, bases)
        words = bases | lengths << self.world.flag("REGION_LENGTH_SHIFT")
        services = self.world.array("services")
        for number, word in zip(numbers.tolist(), words.tolist(), strict=True):
            self.epochs.store_word(0, "started", number)
            services.store_word(self.service.id, "cluster", word)
            self.epochs.store_word(0, "committed", number)
        self.epoch += self.batch

    def _rest(self) -> None:
        """Once round: nobody may still be reading what is written next."""
        time.sleep(max(0.0, self._round_began + GRACE_SECONDS - time.monotonic()))
        self._round_began = time.monotonic()

    def _write(self, numbers: Ints, lengths: Ints, bases: Ints) -> None:
        """Members in an order that changes; what lies behind them must never be met."""
        members = np.arange(STRIDE)
        ids = bases[:, None] + (members + numbers[:, None]) % STRIDE
        good = members < lengths[:, None]
        backends, slots = self.world.array("backends").records, self.world.array("slots").records
        backends["addr"]["w"][ids, 3] = np.where(good, numbers[:, None], _POISON)
        backends["port"][ids] = np.where(good, members << 8 | lengths[:, None], 0)
        slots["backend"][bases[:, None] + members] = ids


class Neighbours:
    """Other frontends in the same few buckets, coming and going: places are reused, and others
    give way to them."""

    def __init__(self, world: World) -> None:
        self.table = world.frontends
        self.numbers = itertools.count()
        self.keys = [
            frontend_key(mapped(f"10.97.{number // 250}.{number % 250}"), 80, 6)
            for number in range(_NEIGHBOURS * 8)
        ]

    def step(self) -> None:
        """One comes, and one goes."""
        number, count = next(self.numbers), len(self.keys)
        self.table.put([(self.keys[number % count], 60, 1)])
        self.table.delete([self.keys[(number - _NEIGHBOURS) % count]])


@contextmanager
def updating(updater: Updater, cpu: int | None) -> Iterator[None]:
    """A process that does nothing but switch, until the block ends. It dies with its parent."""
    neighbours = Neighbours(updater.world)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            while os.getppid() == parent:
                updater.switch()
                for _ in range(10):
                    neighbours.step()
        finally:
            os._exit(status)
    try:
        yield
    finally:
        done = os.waitpid(child, os.WNOHANG)[0]
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert not done, "the updater died before the end"


class Range:
    """The fire program on the maps of a world, and its counters."""

    def __init__(self, world: World, bundle: Bundle) -> None:
        self.world = world
        extra = {name: maps.create(bundle.maps[name], 1) for name in _EXTRA_MAPS}
        self.epochs = cast(maps.ArrayMap, extra["fire_epochs"])
        self.counters = cast(maps.ArrayMap, extra["fire_counts"])
        fds = {name: made.fd for name, made in (*world.maps.items(), *extra.items())}
        self.program = load(bundle.programs["fire"], fds)

    def aim(self, service: Service) -> None:
        """The service whose frontend is looked up from now on, and counters at 0."""
        key = frontend_key(mapped(service.addresses[0]), service.port, service.protocol)
        field = self.epochs.records["frontend"]
        field[0] = np.frombuffer(key.ljust(field.dtype.itemsize, b"\0"), field.dtype)[0]
        self.epochs.records["service"][0] = service.id
        self.counters.records[:] = np.zeros(1, self.counters.records.dtype)

    def lookups(self, runs: int) -> None:
        """So many lookups, in system calls of at most a million."""
        while runs > 0:
            testrun.run(self.program, bytes(64), repeat=min(runs, 1_000_000))
            runs -= 1_000_000

    def counts(self) -> dict[str, int]:
        return {name: int(self.counters.records[name][0]) for name in COUNTS}

    def members(self) -> Sequence[int]:
        return [int(n) for n in self.counters.records["members"][0]]

    def close(self) -> None:
        os.close(self.program)
        self.epochs.close()
        self.counters.close()
