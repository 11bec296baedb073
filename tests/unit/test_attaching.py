"""Attaching to many interfaces at once: linear, the newest first, and nothing waits for it.

Calls are counted, with an attacher and a kernel that only pretend.
"""

from __future__ import annotations

import ipaddress
import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ebpf.errors import InUseError, KernelError
from ebpf.kernel import netlink
from ebpf.kernel.netlink import Address, Changes, Link, Network
from lbctl.agent import attaching
from lbctl.agent.attaching import Attaching, Wanted
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.threads import Beat
from tests.support.waiting import wait_until

PROGRAMS: Any = SimpleNamespace(
    fds={
        f"entry_{way}_{what}": number
        for number, (way, what) in enumerate(
            (way, what) for way in ("from", "to") for what in ("pod", "net", "tunnel")
        )
    }
)
NEWER: Any = SimpleNamespace(fds={name: 10 + number for name, number in PROGRAMS.fds.items()})
NONE = Changes((), frozenset(), False, False, False)
UPLINK = Link(2, "eth0", "", "up", True, False, 0, 0, None)


def pod(index: int) -> Link:
    return Link(index, f"veth{index}", "veth", "up", True, False, 0, 2, 1)


class Kernel:
    """Interfaces, what runs on them, and how often each thing was asked for."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {2: UPLINK}
        self.running: dict[tuple[int, str], int] = {}
        self.put: dict[tuple[int, str], int] = {}
        self.order: list[int] = []
        self.refusing: dict[str, Exception] = {}
        self.looks = self.attaches = self.scans = 0
        self.changes = NONE
        self.gate: threading.Event | None = None

    def read_network(self) -> Network:
        self.looks += 1
        uplink = Address(2, ipaddress.ip_address("192.0.2.1"), 24, 0)
        return Network(tuple(self.links.values()), (uplink,), ())

    # An attacher.

    def attach(self, ifname: str, ifindex: int, direction: str, fd: int) -> str:
        self.attaches += 1
        if self.gate:
            self.gate.wait(10)
        if ifname in self.refusing:
            raise self.refusing[ifname]
        place = (ifindex, direction)
        found, before = self.running.get(place), self.put.get(place)
        self.running[place] = self.put[place] = fd
        if found == fd:
            return "unchanged"
        if direction == "ingress":
            self.order.append(ifindex)
        if found != before:
            return "restored"
        return "attached" if found is None else "replaced"

    def attachments(self) -> list[Any]:
        self.scans += 1
        return []

    def prune(self) -> None:
        self.scans += 1

    def forget(self, gone: list[int]) -> None:
        for index in gone:
            for direction in ("ingress", "egress"):
                self.running.pop((index, direction), None)
                self.put.pop((index, direction), None)

    # A watch.

    waiting = False

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None: ...

    def fileno(self) -> int:
        return self.pipe

    pipe = -1

    def read(self, most: int) -> Changes:
        found, self.changes = self.changes, NONE
        return found

    def come(self, *links: Link) -> None:
        self.links.update((link.ifindex, link) for link in links)
        self.changes = Changes(links, frozenset(), False, False, False)


class NoDrivers:
    """XDP is off, and nothing was there."""

    mode = "off"
    states = ()
    problem = ""

    def due(self) -> float:
        return float("inf")

    def changed(self) -> None: ...

    def replace(self, generation: Any) -> None: ...

    def look(self, links: Any, uplinks: Any) -> None: ...


@pytest.fixture
def told() -> Iterator[int]:
    made = os.eventfd(1, os.EFD_NONBLOCK)  # always to be read: no turn waits
    yield made
    os.close(made)


@pytest.fixture
def kernel(told: int, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    made.pipe = told
    monkeypatch.setattr(netlink, "read_network", made.read_network)
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def made(kernel: Kernel, clock: list[float]) -> Attaching:
    stand_in = cast(Any, kernel)
    return Attaching(stand_in, cast(Any, NoDrivers()), stand_in, Beat(lambda: 0.0))


def turns(made: Attaching, told: int) -> int:
    """Until nothing is left to do."""
    count = 0
    while True:
        os.eventfd_write(told, 1)
        made.turn(told)
        count += 1
        if not made.pending and made._stale is None:
            return count


@pytest.mark.parametrize("count", [50, 500])
def test_each_costs_the_same_however_many_there_are(
    count: int, made: Attaching, kernel: Kernel, told: int
) -> None:
    made.want(Wanted(generation=PROGRAMS))
    turns(made, told)
    before = kernel.attaches, kernel.looks, kernel.scans
    kernel.come(*map(pod, range(100, 100 + count)))
    assert turns(made, told) == count
    after = kernel.attaches, kernel.looks, kernel.scans
    assert [b - a for a, b in zip(before, after, strict=True)] == [2 * count, 0, 0]
    assert made.placed is PROGRAMS
    assert len(made.attached) == count + 1


def test_the_newest_comes_first_and_waits_for_one_at_most(
    made: Attaching, kernel: Kernel, told: int
) -> None:
    kernel.links.update((index, pod(index)) for index in range(100, 110))
    made._look()
    made.want(Wanted(generation=PROGRAMS))
    os.eventfd_write(told, 1)
    made.turn(told)
    kernel.come(pod(500))
    turns(made, told)
    assert kernel.order[1] == 500
    assert len(kernel.order) == 12


def test_all_are_attached_before_it_says_so(made: Attaching, kernel: Kernel, told: int) -> None:
    kernel.links.update((index, pod(index)) for index in range(100, 103))
    made._look()
    made.want(Wanted(generation=PROGRAMS))
    placed = []
    for _ in range(4):
        os.eventfd_write(told, 1)
        made.turn(told)
        placed.append(made.placed is PROGRAMS)
    assert placed == [False, False, False, True]


def test_what_others_took_away_is_put_back_and_said(
    made: Attaching, kernel: Kernel, told: int, clock: list[float]
) -> None:
    kernel.come(pod(100))
    made.want(Wanted(generation=PROGRAMS))
    turns(made, told)
    del kernel.running[100, "egress"]
    made.want(Wanted(generation=PROGRAMS, looks=1))
    clock[0] += 60
    turns(made, told)
    assert (100, "egress") in kernel.running
    assert made.repaired(clock[0]) == ("veth100",)
    assert made.repairs == 1
    assert made.repaired(clock[0] + attaching.REPAIRED_SECONDS) == ()


def test_what_others_took_away_is_told_from_a_newer_generation(
    made: Attaching, kernel: Kernel, told: int, clock: list[float]
) -> None:
    """The tables grow just when somebody has put another program there."""
    kernel.come(pod(100), pod(101))
    made.want(Wanted(generation=PROGRAMS))
    turns(made, told)
    kernel.running[100, "ingress"] = 99
    made.want(Wanted(generation=NEWER))
    turns(made, told)
    assert kernel.running[100, "ingress"] == kernel.running[101, "ingress"] != 99
    assert made.repairs == 1
    assert made.repaired(clock[0]) == ("veth100",)


@pytest.mark.parametrize(
    "error",
    [KernelError("no room", 28), InUseError("another's filter"), OSError(1, "no")],
)
def test_one_that_cannot_be_attached_is_said_and_tried_again(
    made: Attaching, kernel: Kernel, told: int, clock: list[float], error: Exception
) -> None:
    made.want(Wanted(generation=PROGRAMS))
    turns(made, told)
    kernel.refusing["veth100"] = error
    kernel.come(pod(100), pod(101))
    turns(made, told)
    (item,) = made.unattached()
    assert (item.name, item.uplink, item.since) == ("veth100", False, 1000.0)
    assert (101, "ingress") in kernel.running
    assert made.placed is PROGRAMS
    kernel.refusing.clear()
    clock[0] += attaching.RETRY_SECONDS
    os.eventfd_write(told, 1)
    made.turn(told)
    turns(made, told)
    assert made.unattached() == ()


def test_one_that_went_meanwhile_is_no_problem(made: Attaching, kernel: Kernel, told: int) -> None:
    made.want(Wanted(generation=PROGRAMS))
    kernel.refusing["veth100"] = KernelError("gone", 19)
    kernel.come(pod(100))
    turns(made, told)
    assert made.unattached() == ()


def test_looking_again_is_bounded_by_what_it_costs(
    made: Attaching, kernel: Kernel, told: int, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod a second, each with an address: one look takes two seconds."""

    def slow() -> Network:
        clock[0] += 2.0
        return kernel.read_network()

    monkeypatch.setattr(netlink, "read_network", slow)
    made._look()
    before, began = kernel.looks, clock[0]
    while clock[0] < began + 200:
        clock[0] += 0.5
        kernel.changes = Changes((), frozenset(), True, False, False)
        os.eventfd_write(told, 1)
        made.turn(told)
    assert 5 <= kernel.looks - before <= 10


def test_nothing_waits_for_an_attach(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets the thread wait; the loop asks and tells without."""
    kernel.gate = threading.Event()
    monkeypatch.setattr(netlink, "Watch", lambda: kernel)
    kernel.links[100] = pod(100)
    keeper = Keeper()
    interfaces = Interfaces(cast(Any, kernel), (), (), cast(Any, NoDrivers()), keeper)
    interfaces.start()
    try:
        interfaces.attach_all(PROGRAMS)
        wait_until(lambda: kernel.attaches, 10)
        interfaces.set_patterns(("eth*",), ())
        interfaces.refresh()
        assert interfaces.placed is None
        assert [link.ifname for link in interfaces.network.links] == ["eth0", "veth100"]
        kernel.gate.set()
        wait_until(lambda: interfaces.placed is PROGRAMS, 10)
        assert interfaces.attached == 2
    finally:
        kernel.gate.set()
        interfaces.close()
        keeper.close()


@pytest.mark.parametrize("count", [3, 100])
def test_what_nobody_reports_is_found_within_seconds(
    count: int, made: Attaching, kernel: Kernel, told: int, clock: list[float]
) -> None:
    """One interface at a time, each once in CHECKED_SECONDS however many there are."""
    kernel.links.update((index, pod(index)) for index in range(100, 100 + count))
    made._look()
    made.want(Wanted(generation=PROGRAMS))
    turns(made, told)
    del kernel.running[101, "egress"]  # detached
    kernel.running[102, "ingress"] = 99  # somebody else's program, by our link
    before, most = kernel.attaches, 0
    until = clock[0] + 2 * attaching.CHECKED_SECONDS
    while clock[0] < until:
        clock[0] += 0.01
        had = kernel.attaches
        os.eventfd_write(told, 1)
        made.turn(told)
        most = max(most, kernel.attaches - had)
    assert most == 2  # the two directions of one
    assert (101, "egress") in kernel.running
    assert kernel.running[102, "ingress"] != 99
    assert made.repairs == 2
    assert made.repaired(clock[0]) == ("veth101", "veth102")
    each = (kernel.attaches - before) / 2 / (count + 1)
    assert 1 <= each <= 2.5
