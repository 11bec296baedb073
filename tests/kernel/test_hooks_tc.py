"""Attaching: order, replacement under traffic, interfaces that come and go, foreign programs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import cast

import pytest
from pyroute2 import IPRoute

from ebpf import instance
from ebpf.errors import InUseError, KernelError
from ebpf.hooks import clsact
from ebpf.hooks.clsact import Slot
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance, Sizes
from ebpf.kernel import bpffs, features, libbpf, syscall
from ebpf.programs import Generation, drop_other_generations, load_generation
from tests.kernel.support.programs import MACHINE_BPFFS, Space, small_bundle, unique

pytestmark = pytest.mark.kernel


class Setup:
    """An instance with loaded programs, and a namespace to attach them in."""

    def __init__(self) -> None:
        bpffs.mount()
        self.pin_dir = MACHINE_BPFFS / unique("attach")
        bundle = small_bundle()
        self.instance = Instance.create_or_open(self.pin_dir, bundle, Sizes(16, 16, 64))
        self.programs: Generation = load_generation(bundle, self.instance)
        self.space = Space(unique("attach"))

    @property
    def fds(self) -> dict[str, int]:
        return self.programs.fds

    def attacher(self, mode: str) -> Attacher:
        return self.space.run(lambda: Attacher(self.pin_dir, mode))

    def attach(self, attacher: Attacher, program: str, direction: str = "ingress") -> str:
        index = self.space.index()
        fd = self.fds[program]
        return self.space.run(lambda: attacher.attach("left", index, direction, fd))

    def program_id(self, program: str) -> int:
        return int(libbpf.prog_info(self.fds[program]).id)

    def seen(self) -> int:
        return int(self.instance.counters.read_sum()[0])

    def close(self) -> None:
        self.programs.close()
        self.instance.close()
        self.space.close()
        instance.remove(self.pin_dir)


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.close()


@pytest.fixture(params=["tcx", "clsact"])
def mode(request: pytest.FixtureRequest, setup: Setup) -> str:
    chosen = cast(str, request.param)
    if chosen == "tcx" and not setup.space.run(features.has_tcx):
        pytest.skip("this kernel has no tcx")
    return chosen


def test_attached_programs_run_and_are_listed(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    assert setup.attach(attacher, "entry_count") == "attached"
    assert setup.attach(attacher, "entry_count", "egress") == "attached"
    setup.space.send(5)
    setup.space.send(3, "left")
    assert setup.seen() == 8
    listed = setup.space.run(attacher.attachments)
    assert [(a.ifname, a.direction, a.mode, a.prog_id) for a in listed] == [
        ("left", "egress", mode, setup.program_id("entry_count")),
        ("left", "ingress", mode, setup.program_id("entry_count")),
    ]


def test_a_second_start_changes_nothing(setup: Setup, mode: str) -> None:
    setup.attach(setup.attacher(mode), "entry_count")
    assert setup.attach(setup.attacher(mode), "entry_count") == "unchanged"


def test_replacing_misses_no_packet(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.attach(attacher, "entry_count")
    for turn in range(20):
        setup.space.send(50)
        program = ("entry_recount", "entry_count")[turn % 2]
        assert setup.attach(attacher, program) == "replaced"
    setup.space.send(50)
    assert setup.seen() == 21 * 50


def test_what_somebody_else_did_is_told_from_what_we_replace(setup: Setup, mode: str) -> None:
    attacher, other = setup.attacher(mode), setup.attacher(mode)
    setup.attach(attacher, "entry_count")
    setup.attach(other, "entry_call")
    assert setup.attach(attacher, "entry_recount") == "restored"
    setup.space.run(lambda: other.detach("left", "ingress"))
    assert setup.attach(attacher, "entry_recount") == "restored"
    assert setup.attach(attacher, "entry_count") == "replaced"
    setup.space.run(lambda: attacher.detach("left", "ingress"))
    assert setup.attach(attacher, "entry_count") == "attached"


def test_a_generation_that_still_runs_is_kept(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.attach(attacher, "entry_call")
    newer = small_bundle(OTHER="1")
    with load_generation(newer, setup.instance):
        drop = partial(drop_other_generations, newer, setup.instance)
        assert setup.space.run(drop) == 0
        setup.programs.close()
        setup.space.send(3)
        # What entry_call calls is only there while its generation's array is.
        assert setup.instance.counters.read_sum().tolist() == [0, 3]
        setup.space.run(attacher.detach_all)
        assert setup.space.run(drop) == 1


def test_detaching_stops_the_program(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.attach(attacher, "entry_count")
    assert setup.space.run(lambda: attacher.detach("left", "ingress"))
    assert not setup.space.run(lambda: attacher.detach("left", "ingress"))
    setup.space.send(5)
    assert setup.seen() == 0
    assert setup.space.run(attacher.attachments) == []


def test_a_new_interface_of_an_old_name(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.attach(attacher, "entry_count")
    setup.space.ip("link", "delete", "left")
    setup.space.add_pair()
    assert setup.attach(attacher, "entry_count") == "attached"
    setup.space.send(4)
    assert setup.seen() == 4


def test_vanished_interfaces_are_pruned(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.attach(attacher, "entry_count")
    setup.attach(attacher, "entry_count", "egress")
    setup.space.ip("link", "delete", "left")
    assert setup.space.run(attacher.prune) == ["left"]
    assert os.listdir(setup.pin_dir / "links") == []


def test_a_device_with_a_dot_in_its_name(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    setup.space.ip("link", "set", "left", "name", "le.ft")
    index, fd = setup.space.index("le.ft"), setup.fds["entry_count"]
    setup.space.run(lambda: attacher.attach("le.ft", index, "ingress", fd))
    assert [a.ifname for a in setup.space.run(attacher.attachments)] == ["le.ft"]
    assert setup.space.run(attacher.detach_all) == 1


def test_a_renamed_interface_is_attached_once(setup: Setup) -> None:
    attacher = setup.attacher("tcx")
    setup.attach(attacher, "entry_count")
    setup.space.ip("link", "set", "left", "name", "other")
    index, fd = setup.space.index("other"), setup.fds["entry_count"]
    assert setup.space.run(lambda: attacher.attach("other", index, "ingress", fd)) == "unchanged"
    setup.space.send(2)
    assert setup.seen() == 2


def test_ours_is_first_in_and_last_out_beside_a_foreign_tcx(setup: Setup) -> None:
    index = setup.space.index()
    foreign = setup.program_id("entry_recount")
    fd = setup.fds["entry_recount"]
    links = [
        setup.space.run(partial(syscall.tcx_link, fd, index, "ingress", "first")),
        setup.space.run(partial(syscall.tcx_link, fd, index, "egress", "last")),
    ]
    attacher = setup.attacher("tcx")
    ours = setup.program_id("entry_count")
    setup.attach(attacher, "entry_count", "ingress")
    setup.attach(attacher, "entry_count", "egress")
    order = setup.space.run(lambda: [syscall.tcx_programs(index, d) for d in ("ingress", "egress")])
    assert order == [[ours, foreign], [foreign, ours]]
    setup.space.run(attacher.detach_all)
    left = setup.space.run(lambda: [syscall.tcx_programs(index, d) for d in ("ingress", "egress")])
    assert left == [[foreign], [foreign]]
    for link in links:
        os.close(link)


def test_a_clsact_of_our_own_goes_with_us(setup: Setup) -> None:
    attacher = setup.attacher("clsact")
    setup.attach(attacher, "entry_count")
    setup.attach(attacher, "entry_count", "egress")
    setup.space.run(lambda: attacher.detach("left", "ingress"))
    assert _has_clsact(setup)
    setup.space.run(lambda: attacher.detach("left", "egress"))
    assert not _has_clsact(setup)


def test_a_foreign_filter_and_its_clsact_stay(setup: Setup) -> None:
    index = setup.space.index()
    _foreign_filter(setup, index, prio=7, handle=1)
    attacher = setup.attacher("clsact")
    setup.attach(attacher, "entry_count")
    found = setup.space.run(lambda: clsact.filters(index, "ingress"))
    assert [f.name for f in found] == [clsact.NAME, "foreign"]
    setup.space.send(3)
    assert setup.seen() == 6, "both run: ours lets the foreign filter have the packet too"
    setup.space.run(attacher.detach_all)
    found = setup.space.run(lambda: clsact.filters(index, "ingress"))
    assert [f.name for f in found] == ["foreign"]


def test_a_clsact_of_ours_that_others_use_stays(setup: Setup) -> None:
    index = setup.space.index()
    attacher = setup.attacher("clsact")
    setup.attach(attacher, "entry_count")
    _foreign_filter(setup, index, prio=7, handle=1, clsact_exists=True)
    setup.space.run(attacher.detach_all)
    assert [f.name for f in setup.space.run(lambda: clsact.filters(index, "ingress"))] == [
        "foreign"
    ]


def test_an_occupied_slot_is_not_taken(setup: Setup) -> None:
    slot = Slot()
    _foreign_filter(setup, setup.space.index(), slot.ingress_priority, slot.handle)
    with pytest.raises(InUseError, match="another's filter"):
        setup.attach(setup.attacher("clsact"), "entry_count")


def test_a_newer_kernel_moves_from_clsact_to_tcx(setup: Setup) -> None:
    setup.attach(setup.attacher("clsact"), "entry_count")
    attacher = setup.attacher("tcx")
    assert setup.attach(attacher, "entry_count") == "attached"
    setup.space.send(3)
    assert setup.seen() == 3
    assert not _has_clsact(setup)


def test_an_interface_that_is_not_there(setup: Setup, mode: str) -> None:
    attacher = setup.attacher(mode)
    with pytest.raises(KernelError) as caught:
        setup.space.run(lambda: attacher.attach("none", 4711, "ingress", setup.fds["entry_count"]))
    assert caught.value.errno == 19  # ENODEV


def test_the_feature_can_be_masked(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBCTL_MASK", "xdp,tcx")
    assert setup.space.run(lambda: Attacher(setup.pin_dir)).mode == "clsact"


def _has_clsact(setup: Setup) -> bool:
    index = setup.space.index()

    def work() -> bool:
        with IPRoute() as netlink:
            return any(q.get_attr("TCA_KIND") == "clsact" for q in netlink.get_qdiscs(index))

    return setup.space.run(work)


def _foreign_filter(
    setup: Setup, index: int, prio: int, handle: int, clsact_exists: bool = False
) -> None:
    def work() -> None:
        with IPRoute() as netlink:
            if not clsact_exists:
                netlink.tc("add", "clsact", index)
            netlink.tc(
                "add-filter",
                "bpf",
                index,
                handle=handle,
                parent=clsact.PARENTS["ingress"],
                prio=prio,
                fd=setup.fds["entry_recount"],
                name="foreign",
                direct_action=True,
            )

    setup.space.run(work)


def test_attaching_costs_the_same_beside_many_others(
    setup: Setup, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in pins that are opened: a look at all of them for each would be a square."""
    opened = [0]
    obj_get = libbpf.obj_get

    def counted(path: str, readonly: bool = False) -> int:
        opened[0] += 1
        return obj_get(path, readonly)

    monkeypatch.setattr(libbpf, "obj_get", counted)
    attacher = setup.attacher(mode)
    fd = setup.fds["entry_count"]
    costs = []
    for number in range(12):
        name = f"more{number}"
        setup.space.ip("link", "add", name, "type", "bridge")
        index = setup.space.index(name)
        before = opened[0]
        for direction in ("ingress", "egress"):
            setup.space.run(partial(attacher.attach, name, index, direction, fd))
        setup.space.ip("link", "delete", name)
        setup.space.run(partial(attacher.forget, [index]))
        setup.space.ip("link", "add", name, "type", "bridge")
        index = setup.space.index(name)
        for direction in ("ingress", "egress"):
            setup.space.run(partial(attacher.attach, name, index, direction, fd))
        costs.append(opened[0] - before)
    assert len(set(costs[1:])) == 1
    assert len(setup.space.run(attacher.attachments)) == 24
