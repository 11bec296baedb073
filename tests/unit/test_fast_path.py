"""When the way past the stack is open, for which devices, and what opens it anew."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ebpf.errors import KernelError
from ebpf.hooks import others
from ebpf.hooks.others import Others, Queues
from ebpf.kernel import paths
from ebpf.kernel.netlink import Link
from ebpf.kernel.paths import NO_MTU, Seen
from lbctl.agent import fastpath
from lbctl.agent.attaching import Running
from lbctl.agent.fastpath import FastPath, Gate, flags_of, store
from lbctl.datapath import clock, consts
from lbctl.host import obstacles
from lbctl.status import DriverState
from tests.support.fake_tables import FakeTables

POD = Link(7, "veth7", "veth", "up", True, False, 0, 2, 1)
UPLINK = Link(2, "eth0", "", "up", True, False, 0, 0, None)
FREE = Others(ingress=False, egress=False, queue=False)
NOBODY = Queues({}, frozenset(), frozenset())
ALL = consts.FAST_FROM | consts.FAST_NEIGH | consts.FAST_PEER | consts.FAST_LEAVE


@pytest.fixture
def seen_on(monkeypatch: pytest.MonkeyPatch) -> dict[int, Others]:
    """What others have on interfaces; nothing unless a test says so."""
    found: dict[int, Others] = {}
    monkeypatch.setattr(others, "queues", lambda: NOBODY)
    monkeypatch.setattr(others, "on_interface", lambda index, ours, all_: found.get(index, FREE))
    return found


@pytest.mark.usefixtures("seen_on")
@pytest.mark.parametrize(
    ("link", "program", "flags"),
    [
        (POD, "entry_from_pod", ALL),
        (UPLINK, "entry_from_net", ALL & ~consts.FAST_PEER),
        # Named a pod's by its owner, and no veth; a veth whose other end is here; an uplink.
        (UPLINK, "entry_from_pod", ALL & ~consts.FAST_PEER),
        (
            Link(7, "v", "veth", "up", True, False, 0, 2, None),
            "entry_from_pod",
            ALL & ~consts.FAST_PEER,
        ),
        (POD, "entry_from_net", ALL & ~consts.FAST_PEER),
        # A bridge's port, one that is down, a tunnel.
        (Link(7, "v", "veth", "up", True, False, 4, 2, 1), "entry_from_pod", 0),
        (Link(7, "v", "veth", "down", False, False, 0, 2, 1), "entry_from_pod", 0),
        (Link(7, "wg", "wireguard", "up", True, False, 0, 0, None, True), "entry_from_tunnel", 0),
        (Link(7, "wg", "wireguard", "up", True, False, 0, 0, None, True), "entry_from_net", 0),
    ],
)
def test_what_a_device_may_be_used_for(link: Link, program: str, flags: int) -> None:
    assert flags_of(link, program, (), NOBODY) == flags


@pytest.mark.parametrize(
    ("found", "flags"),
    [
        (Others(ingress=True, egress=False, queue=False), ALL & ~consts.FAST_FROM),
        (Others(ingress=False, egress=True, queue=False), consts.FAST_FROM | consts.FAST_NEIGH),
        (Others(ingress=False, egress=False, queue=True), ALL & ~consts.FAST_PEER),
    ],
)
def test_what_others_have_on_a_pods_device(
    seen_on: dict[int, Others], found: Others, flags: int
) -> None:
    seen_on[POD.ifindex] = found
    assert flags_of(POD, "entry_from_pod", (), NOBODY) == flags


def test_devices_are_written_once_and_those_that_are_gone_forgotten() -> None:
    table = FakeTables().fast_devices
    assert store(table, {7: 3, 2: 1})
    assert not store(table, {2: 1, 7: 3})
    assert store(table, {7: 3})
    keys, values = table.read_all()
    assert (keys.tolist(), values.tolist()) == ([7], [3])


# The gate, and who opens it


@pytest.fixture
def config() -> Any:
    return FakeTables().config


def test_each_opening_has_an_epoch_of_its_own_whoever_opens(config: Any) -> None:
    epochs = []
    for _ in range(3):
        gate = Gate(config)
        gate.begin_epoch()
        gate.open()
        assert gate.is_open
        epochs.append(int(config.records["fast_epoch"][0]))
        gate.shut()
        assert not gate.is_open
    assert len(set(epochs)) == 3


def test_an_epoch_after_the_last_number(config: Any) -> None:
    config.records["fast_epoch"] = 0xFFFFFFFF
    Gate(config).begin_epoch()
    assert config.records["fast_epoch"][0] == 0


def test_what_is_open_ends_by_itself(config: Any) -> None:
    Gate(config).keep_open()
    left = int(config.records["fast_until"][0]) - clock.current_beat()
    assert 0 < clock.seconds(left) <= fastpath.LIFE_SECONDS + 2 * clock.seconds(1)


class NoThread:
    def stop(self) -> None:
        pass

    def join(self, seconds: float) -> bool:
        return True


class Rig:
    """A FastPath whose thread is this one, on a fake instance and a node that a test changes."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, mode: str = "on", drivers: str = "off"
    ) -> None:
        self.tables = FakeTables()
        self.obstacles: list[str] = []
        self.routing: list[str] = []
        self.routes = NO_MTU
        self.now = 100.0
        self.beat = SimpleNamespace(stopping=threading.Event())
        monkeypatch.setattr(obstacles, "find", lambda: [*self.obstacles, *self.routing])
        monkeypatch.setattr(obstacles, "find_routing", lambda: list(self.routing))
        monkeypatch.setattr(paths, "least_mtu", lambda: self.routes)
        self.programs = SimpleNamespace(placed=True, descriptors=[])
        self.interfaces = SimpleNamespace(
            running={7: Running(POD, "entry_from_pod"), 2: Running(UPLINK, "entry_from_net")},
            drivers=(DriverState("eth0", "sends", ""),),
        )
        keeper = SimpleNamespace(work=lambda name, work: NoThread())
        loose: Any = FastPath
        self.path: FastPath = loose(
            mode, self.tables, self.interfaces, self.programs, keeper, lambda: self.now, drivers
        )
        self.look_at = 0.0

    def turn(self, seconds: float = 0.0, **seen: Any) -> None:
        self.now += seconds
        beat: Any = self.beat
        self.look_at = self.path._turn(beat, Seen(**seen), self.look_at)

    @property
    def open(self) -> bool:
        return bool(self.tables.config.records["fast_open"][0])

    @property
    def xdp(self) -> int:
        return int(self.tables.config.records["xdp"][0])

    @property
    def epoch(self) -> int:
        return int(self.tables.config.records["fast_epoch"][0])


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, seen_on: dict[int, Others]) -> Rig:
    return Rig(monkeypatch)


def test_it_opens_with_the_first_look_and_stays_in_its_epoch(rig: Rig) -> None:
    rig.turn()
    assert rig.open
    assert rig.path.state.open
    before = rig.epoch
    for _ in range(5):
        rig.turn(fastpath.LOOK_SECONDS)
    assert (rig.open, rig.epoch) == (True, before)


def test_it_is_shut_until_the_programs_are_everywhere(rig: Rig) -> None:
    rig.programs.placed = False
    rig.turn()
    assert not rig.open
    assert rig.path.state.obstacles == ("the programs are not on all interfaces yet",)
    rig.programs.placed = True
    rig.turn(0.1)
    assert rig.open


def test_what_stands_in_the_way_is_said_and_shuts(rig: Rig) -> None:
    rig.turn()
    rig.obstacles = ["nftables: chain f of inet t has rules"]
    rig.turn(0.5)
    assert rig.open  # nobody announced it, and it is not time to look
    rig.turn(0.5)
    assert not rig.open
    assert rig.path.state.obstacles == tuple(rig.obstacles)


def test_a_change_of_rules_shuts_before_it_is_looked_at(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.turn()
    were = []

    def find() -> list[str]:
        were.append(rig.open)
        return []

    monkeypatch.setattr(obstacles, "find", find)
    epoch = rig.epoch
    rig.turn(0.01, rules=True)
    assert were == [False]
    assert rig.open
    assert rig.epoch != epoch


def test_a_hop_that_may_be_another_begins_an_epoch_at_once(rig: Rig) -> None:
    rig.turn()
    epoch = rig.epoch
    rig.turn(0.01, hops=True)
    assert rig.open
    assert rig.epoch == epoch + 1


def test_a_hop_that_may_be_another_does_not_open_what_is_shut(rig: Rig) -> None:
    rig.obstacles = ["IPsec: 1 policies"]
    rig.turn()
    rig.turn(0.01, hops=True)
    assert not rig.open


def test_the_least_mtu_of_all_routes_holds(rig: Rig) -> None:
    mtu = rig.tables.config.records["fast_mtu"]
    rig.turn()
    assert mtu[0] == NO_MTU
    epoch = rig.epoch
    rig.turn(0.01, hops=True, mtu=1400)
    assert mtu[0] == 1400
    assert rig.epoch != epoch
    rig.turn(fastpath.LOOK_SECONDS)
    assert mtu[0] == 1400  # it may be there still
    epoch = rig.epoch
    rig.turn(fastpath.ROUTES_SECONDS)
    assert mtu[0] == NO_MTU
    assert rig.epoch != epoch


def test_devices_that_are_others_begin_an_epoch(rig: Rig) -> None:
    rig.turn()
    epoch = rig.epoch
    rig.interfaces.running = {}
    rig.turn(fastpath.LOOK_SECONDS)
    assert rig.open
    assert rig.epoch != epoch
    assert len(rig.tables.fast_devices.read_all()[0]) == 0


def test_what_cannot_be_looked_at_shuts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Queues:
        raise KernelError("no list of queues", 1)

    rig.turn()
    monkeypatch.setattr(others, "queues", fail)
    rig.turn(fastpath.LOOK_SECONDS)
    assert not rig.open
    assert "no list of queues" in rig.path.state.obstacles[0]


def test_a_thread_that_was_replaced_opens_nothing(rig: Rig) -> None:
    rig.beat.stopping.set()
    rig.turn()
    assert not rig.open


def test_what_an_earlier_agent_left_open_is_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    rig.tables.config.records["fast_open"] = 1
    parts: Any = (rig.interfaces, rig.programs, SimpleNamespace(work=lambda name, work: None))
    FastPath("off", rig.tables, *parts).close()
    assert not rig.open
    assert np.all(rig.tables.config.records["fast_open"] == 0)


# Drivers

MAY = consts.XDP_SENDS_ON | consts.XDP_KEEPS_HOPS


def rig_of(monkeypatch: pytest.MonkeyPatch, drivers: str) -> Rig:
    made = Rig(monkeypatch, "off", drivers)
    made.turn()
    return made


@pytest.mark.usefixtures("seen_on")
def test_drivers_by_auto_send_on_while_nobody_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of(monkeypatch, "auto")
    assert (rig.xdp, rig.open, rig.path.minding) == (MAY, False, ())
    assert not rig.path.state.wanted
    rig.obstacles = ["nftables: chain f of inet t has rules"]
    rig.turn(fastpath.LOOK_SECONDS)
    assert rig.xdp == 0
    assert rig.path.minding == tuple(rig.obstacles)
    rig.obstacles = []
    epoch = rig.epoch
    rig.turn(fastpath.LOOK_SECONDS)
    assert (rig.xdp, rig.path.minding) == (MAY, ())
    assert rig.epoch != epoch


@pytest.mark.usefixtures("seen_on")
def test_drivers_by_on_send_on_whoever_minds(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = rig_of(monkeypatch, "on")
    always = consts.XDP_SENDS_ALWAYS
    assert rig.xdp == always | consts.XDP_KEEPS_HOPS
    rig.obstacles = ["nftables: chain f of inet t has rules"]
    rig.turn(fastpath.LOOK_SECONDS)
    assert rig.xdp == always | consts.XDP_KEEPS_HOPS
    assert rig.path.minding == tuple(rig.obstacles)
    # Where packets to one destination may take different ways, the kernel is asked for each.
    rig.routing = ["policy routing: ip rule 100 (IPv4)"]
    rig.turn(fastpath.LOOK_SECONDS)
    assert rig.xdp == always
    rig.path.close()
    assert rig.xdp == always  # without an agent, too


@pytest.mark.usefixtures("seen_on")
def test_a_change_of_rules_stops_drivers_before_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for drivers, then in (("auto", 0), ("on", consts.XDP_SENDS_ALWAYS)):
        rig = rig_of(monkeypatch, drivers)
        were: list[int] = []

        def find(rig: Rig = rig, were: list[int] = were) -> list[str]:
            were.append(rig.xdp)
            return []

        monkeypatch.setattr(obstacles, "find", find)
        rig.turn(0.01, rules=True)
        assert were == [then]
        assert rig.xdp & consts.XDP_KEEPS_HOPS


def test_others_programs_on_an_uplink_are_said(
    monkeypatch: pytest.MonkeyPatch, seen_on: dict[int, Others]
) -> None:
    seen_on[UPLINK.ifindex] = Others(ingress=False, egress=True, queue=False)
    rig = rig_of(monkeypatch, "auto")
    assert rig.path.minding == ("eth0: others run programs at its tc hooks",)
    seen_on.clear()
    rig.turn(fastpath.LOOK_SECONDS)
    assert not rig.path.minding


def test_drivers_that_are_off_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, "off", "off")
    rig.tables.config.records["xdp"] = MAY
    parts: Any = (rig.interfaces, rig.programs, SimpleNamespace(work=lambda name, work: None))
    FastPath("off", rig.tables, *parts).close()
    assert rig.xdp == 0
