"""XDP on uplinks: which devices are used, tested, told of in the map, and let go."""

from __future__ import annotations

import time
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from ebpf.errors import KernelError
from ebpf.hooks.xdp import Attachment
from ebpf.kernel import netdev
from ebpf.kernel.netlink import Link
from lbctl.agent import drivertest
from lbctl.agent.drivers import AUTO, OFF, Drivers
from lbctl.agent.drivertest import Trial
from lbctl.datapath import consts
from lbctl.host.drivers import judge, judge_others
from lbctl.status import DriverState

MAC = bytes.fromhex("020000000001")
ALL = netdev.BASIC | netdev.REDIRECT | netdev.TRANSMIT
FDS = {"xdp_uplink": 10, "xdp_probe": 11}


def uplink(index: int, **changes: Any) -> Link:
    made = Link(index, f"eth{index}", "", "up", True, False, 0, 0, None, mac=MAC, mtu=1500)
    return msgspec.structs.replace(made, **changes)


class Kernel:
    """Drivers that can all, unless told otherwise; links of programs; the map of devices."""

    def __init__(self) -> None:
        self.features: dict[int, int] = {}
        self.refused: dict[str, str] = {}
        self.here: dict[int, tuple[str, int]] = {}
        self.sent = 0
        self.tests = 0
        self.program_fault = ""
        self.rows: dict[int, bytes] = {}
        self.told: list[dict[int, bytes]] = []  # the map whenever it had changed
        self.max_entries = 2
        self.spec = cast(Any, self)
        self.value = cast(Any, self)
        self.dtype = np.dtype([("mac", "V6"), ("flags", "<u2")])

    def note(self) -> None:
        self.told.append(dict(self.rows))

    # As DriverAttacher

    def attach(self, ifname: str, ifindex: int, prog_fd: int) -> str:
        if ifname in self.refused:
            raise KernelError(self.refused[ifname], 16)
        before, self.here[ifindex] = self.here.get(ifindex), (ifname, prog_fd)
        if before is None:
            return "attached"
        return "unchanged" if before[1] == prog_fd else "replaced"

    def detach(self, ifname: str) -> bool:
        found = [index for index, (name, _) in self.here.items() if name == ifname]
        for index in found:
            del self.here[index]
        return bool(found)

    def attachments(self) -> list[Attachment]:
        return [Attachment(name, index, fd, "") for index, (name, fd) in self.here.items()]

    # As the map

    def read_all(self) -> tuple[Any, Any]:
        values = np.frombuffer(b"".join(self.rows.values()), self.dtype)
        return np.array(list(self.rows), np.uint32), values

    def put_many(self, keys: Any, values: Any) -> int:
        self.rows.update((int(k), v.tobytes()) for k, v in zip(keys, values, strict=True))
        return len(keys)

    def delete_many(self, keys: Any) -> int:
        for key in keys:
            del self.rows[int(key)]
        return len(keys)

    # As the test of devices

    def features_of(self, ifindex: int) -> int:
        return self.features.get(ifindex, ALL)

    def try_program(self, link: Link, prog_fd: int) -> str:
        assert self.here[link.ifindex][1] == prog_fd
        return self.program_fault

    def begin(self, link: Link, programs: Any, now: float) -> Trial:
        self.tests += 1
        return Trial(0, now + drivertest.TEST_SECONDS)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def kernel(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(drivertest, "features", made.features_of)
    monkeypatch.setattr(drivertest, "try_program", made.try_program)
    monkeypatch.setattr(drivertest, "begin", made.begin)
    monkeypatch.setattr(Trial, "passed", lambda trial, index: made.sent > 0)
    monkeypatch.setattr("ebpf.kernel.netlink.ask_again", lambda index, most: 0)
    return made


def made(kernel: Kernel, mode: str = AUTO, patterns: tuple[str, ...] = ()) -> Drivers:
    drivers = Drivers(mode, patterns, cast(Any, kernel), cast(Any, kernel), kernel.note)
    drivers.replace(cast(Any, FakeGeneration()))
    return drivers


class FakeGeneration:
    def __init__(self) -> None:
        self.fds = FDS


def look(drivers: Drivers, *links: Link, uplinks: set[int] | None = None) -> dict[str, str]:
    """The state of each by name."""
    drivers.look({link.ifindex: link for link in links}, uplinks or {1})
    return {state.name: state.state for state in drivers.states}


def flags(kernel: Kernel, index: int) -> int:
    return int.from_bytes(kernel.rows[index][6:], "little")


def test_a_device_is_used_once_it_has_sent_what_it_was_given(
    kernel: Kernel, clock: list[float]
) -> None:
    drivers = made(kernel)
    assert look(drivers, uplink(1), uplink(2)) == {"eth1": "testing"}
    assert (kernel.rows[1][:6], flags(kernel, 1)) == (MAC, 0)
    clock[0] += 1
    kernel.sent = 8
    assert look(drivers, uplink(1)) == {"eth1": "sends"}
    assert flags(kernel, 1) == consts.XDP_DEVICE_SENDS
    assert kernel.tests == 1
    assert len(kernel.told) == 2  # next hops are kept: each change ends that
    assert kernel.told[-1] == kernel.rows
    look(drivers, uplink(1))
    assert len(kernel.told) == 2


def test_one_that_does_not_send_still_receives(kernel: Kernel, clock: list[float]) -> None:
    drivers = made(kernel)
    look(drivers, uplink(1))
    clock[0] += drivertest.TEST_SECONDS
    assert look(drivers, uplink(1)) == {"eth1": "receives"}
    assert flags(kernel, 1) == 0
    assert drivers.states[0].why == drivertest.CANNOT_SEND
    kernel.features[1] = netdev.BASIC | netdev.REDIRECT  # it says so itself
    assert look(drivers, uplink(1)) == {"eth1": "receives"}
    assert kernel.tests == 1


def test_a_device_that_changes_is_tested_again(kernel: Kernel, clock: list[float]) -> None:
    drivers = made(kernel)
    kernel.sent = 8
    look(drivers, uplink(1))
    assert look(drivers, uplink(1)) == {"eth1": "sends"}
    for changed in (uplink(1, mac=b"\2" * 6), uplink(1, mac=b"\2" * 6, mtu=1400)):
        assert look(drivers, changed) == {"eth1": "testing"}
        assert kernel.rows[1][:6] == changed.mac
        assert look(drivers, changed) == {"eth1": "sends"}
    kernel.here.clear()  # somebody detached it
    assert look(drivers, changed) == {"eth1": "testing"}
    assert kernel.tests == 4


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (uplink(1, bare=True), "no Ethernet header"),
        (uplink(1, mac=b""), "no Ethernet header"),
        (uplink(1, master=7), "port of another device"),
    ],
)
def test_what_is_no_device_for_it_is_left_to_tc(kernel: Kernel, link: Link, why: str) -> None:
    drivers = made(kernel)
    assert look(drivers, link) == {"eth1": "tc"}
    assert why in drivers.states[0].why
    assert (kernel.here, kernel.rows) == ({}, {})


def test_a_device_with_vlans_is_left_to_tc(kernel: Kernel) -> None:
    drivers = made(kernel)
    assert look(drivers, uplink(1)) == {"eth1": "testing"}
    vlan = uplink(5, kind="vlan", peer=1)
    assert look(drivers, uplink(1), vlan) == {"eth1": "tc"}
    assert "VLAN" in drivers.states[0].why
    assert (kernel.here, kernel.rows) == ({}, {})


def test_another_program_is_named_and_asked_for_again(kernel: Kernel, clock: list[float]) -> None:
    drivers = made(kernel)
    kernel.refused["eth1"] = "eth1 has another XDP program, x"
    assert look(drivers, uplink(1)) == {"eth1": "tc"}
    assert "another XDP program, x" in drivers.states[0].why
    del kernel.refused["eth1"]
    assert look(drivers, uplink(1)) == {"eth1": "tc"}  # not at once
    clock[0] += 31
    assert look(drivers, uplink(1)) == {"eth1": "testing"}


def test_a_program_that_fails_its_test_is_taken_away(kernel: Kernel) -> None:
    drivers = made(kernel)
    kernel.program_fault = "it does something else"
    assert look(drivers, uplink(1)) == {"eth1": "tc"}
    assert kernel.here == {}


def test_patterns_and_uplinks_that_go(kernel: Kernel) -> None:
    drivers = made(kernel, patterns=("eth2",))
    both = {1, 2}
    assert look(drivers, uplink(1), uplink(2), uplinks=both) == {"eth2": "testing"}
    assert look(drivers, uplink(1), uplinks={1}) == {}
    assert (kernel.here, kernel.rows) == ({}, {})
    assert look(drivers, uplink(1), uplink(2, up=False), uplinks=both) == {}


def test_what_the_map_has_no_room_for_goes_up(kernel: Kernel) -> None:
    many = [uplink(index) for index in range(1, 5)]
    drivers = made(kernel)
    look(drivers, *many, uplinks={1, 2, 3, 4})
    assert sorted(kernel.here) == [1, 2, 3, 4]
    assert sorted(kernel.rows) == [1, 2]


def test_off_takes_away_what_an_earlier_agent_left(kernel: Kernel) -> None:
    kernel.here[1] = ("eth1", 9)
    kernel.rows[1] = MAC + b"\1\0"
    drivers = Drivers(OFF, (), cast(Any, kernel), cast(Any, kernel), kernel.note)
    without = FakeGeneration()
    without.fds = {}  # none is loaded then
    drivers.replace(cast(Any, without))
    assert look(drivers, uplink(1)) == {}
    assert (kernel.here, kernel.rows) == ({}, {})
    assert drivers.due() == float("inf")


def test_another_generation_takes_the_place_of_the_one_before(kernel: Kernel) -> None:
    drivers = made(kernel)
    look(drivers, uplink(1))
    later = FakeGeneration()
    later.fds = {"xdp_uplink": 20, "xdp_probe": 21}
    drivers.replace(cast(Any, later))
    assert kernel.here == {1: ("eth1", 20)}


RULES = "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n"
NFT = "  ct state invalid counter packets 0 bytes 0 drop\n"


@pytest.mark.parametrize("text", [RULES, NFT])
def test_the_doctor_minds_rules_that_drop_what_is_invalid(text: str) -> None:
    used = (DriverState("eth0", "sends", ""),)
    assert judge(used, {"iptables": text}, "0").ok is False
    assert judge(used, {"iptables": text}, "1").ok
    assert judge(used, {"iptables": "-A FORWARD -j ACCEPT\n"}, "0").ok
    assert judge((DriverState("eth0", "tc", "no"),), {"iptables": text}, "0").detail == "eth0: no"


def test_the_doctor_says_who_would_have_a_say() -> None:
    fine = judge((DriverState("eth0", "sends", ""),), {}, "1")
    assert judge_others("auto", (), fine) is fine
    others = ("nftables: chain f of inet t has rules",)
    auto, on = judge_others("auto", others, fine), judge_others("on", others, fine)
    assert (auto.ok, on.ok) == (False, False)
    assert auto.detail.startswith("left to TC")
    assert on.detail.startswith("packets of established flows bypass")
    assert "--xdp on" in auto.remedy
    assert "--xdp auto" in on.remedy
