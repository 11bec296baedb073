"""Other programs on the same links: all run, ours between them, and cleanup spares them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from ebpf import maps, programs
from ebpf.compile import compiler
from ebpf.compile.source import Unit
from ebpf.hooks import clsact
from ebpf.kernel import features, libbpf, syscall
from lbctl import status
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from tests.lab.support.labs import TCP, Responder, addresses, ask, connected, inside, publish

pytestmark = pytest.mark.lab

SOURCES = Path(__file__).with_name("support") / "foreign_c"
LINK = "veth1"  # of pod1, the client
BACKEND = "pod2"
DIRECTIONS = ("ingress", "egress")
# Of clsact filters, around ours.
EARLY, LATE = 2, 65500


@dataclass
class Foreign:
    """A program of somebody else's, and what it has seen so far."""

    name: str
    prog_fd: int
    seen: maps.PerCpuArray

    def take(self) -> str:
        """Whom it saw the client talk to since the last call: "service", "backend", or neither."""
        counts = self.seen.read_sum().tolist()
        new = [count - before for count, before in zip(counts, self._before, strict=True)]
        self._before = counts
        return " and ".join(name for name, n in zip(("service", "backend"), new, strict=True) if n)

    _before: list[int] = field(default_factory=lambda: [0, 0])


class Neighbours:
    """Programs on one link of node1, in places that others than we have chosen."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.index = inside(lab, "node1", partial(socket.if_nametoindex, LINK))
        self._stack = stack
        service, backend = addresses("web")[0], lab.find(BACKEND).addresses[0]
        names = {"A": IPv4Address(service), "B": IPv4Address(backend)}
        defines = [(name, hex(int(address))) for name, address in names.items()]
        self._bundle = compiler.bundle(
            defines=defines, directory=SOURCES, units=(Unit("foreign", "foreign.c"),)
        )
        self.all: dict[str, dict[str, Foreign]] = {direction: {} for direction in DIRECTIONS}

    def add_tcx(self, name: str, position: str) -> None:
        for direction in DIRECTIONS:
            made = self._make(name, direction)
            link = inside(
                self.lab,
                "node1",
                partial(syscall.tcx_link, made.prog_fd, self.index, direction, position),
            )
            self._stack.callback(os.close, link)

    def add_filter(self, name: str, priority: int) -> None:
        for direction in DIRECTIONS:
            made = self._make(name, direction)
            inside(self.lab, "node1", partial(self._add_filter, made, direction, priority))

    def _add_filter(self, made: Foreign, direction: str, priority: int) -> None:
        with IPRoute() as netlink:
            if not any(q.get_attr("TCA_KIND") == "clsact" for q in netlink.get_qdiscs(self.index)):
                netlink.tc("add", "clsact", self.index)
            parent = clsact.PARENTS[direction]
            options: dict[str, Any] = {"fd": made.prog_fd, "name": made.name, "direct_action": True}
            netlink.tc(
                "add-filter", "bpf", self.index, handle=1, parent=parent, prio=priority, **options
            )

    def _make(self, name: str, direction: str) -> Foreign:
        seen = maps.create(self._bundle.maps["seen"], 2)
        assert isinstance(seen, maps.PerCpuArray)
        self._stack.callback(seen.close)
        prog_fd = programs.load(self._bundle.programs["look"], {"seen": seen.fd})
        self._stack.callback(os.close, prog_fd)
        made = self.all[direction][name] = Foreign(name, prog_fd, seen)
        return made

    def saw(self) -> dict[str, dict[str, str]]:
        """What each program saw since the last call, by direction and name."""
        return {
            direction: {name: program.take() for name, program in found.items()}
            for direction, found in self.all.items()
        }

    def attached(self) -> dict[str, tuple[list[int], list[str]]]:
        """By direction: ids of tcx programs in order, names of clsact filters in order."""

        def look() -> dict[str, tuple[list[int], list[str]]]:
            return {
                direction: (
                    syscall.tcx_programs(self.index, direction),
                    [found.name for found in clsact.filters(self.index, direction)],
                )
                for direction in DIRECTIONS
            }

        return inside(self.lab, "node1", look)


@pytest.fixture(params=["tcx", "clsact"])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How our programs are attached: as on this kernel, or as on one before 6.6."""
    if not features.has_tcx():
        pytest.skip("this kernel has no tcx (6.6): foreign tcx programs cannot be tried")
    if request.param == "clsact":
        monkeypatch.setenv("LBCTL_MASK", "tcx")
    return str(request.param)


@pytest.fixture
def lab(make_lab: Callable[..., Lab], ours: str) -> Iterator[Lab]:
    made = make_lab(f"n-{ours}", nodes=1, pods=2, agent=False)
    with Responder() as responder:
        responder.serve(made, [BACKEND])
        yield made
    made.down()


def start(lab: Lab) -> None:
    lab.start_agent("node1")
    lab.wait_ready(timeout=120)  # the first start on a machine compiles the programs
    publish(lab, {"web": [BACKEND]})


def talk(lab: Lab) -> None:
    for family in (0, 1):
        with connected(lab, "pod1", addresses("web")[family], TCP) as sock:
            assert ask(sock, "hello").server == BACKEND


def cleanup(lab: Lab) -> None:
    command = lbctl_command("cleanup", "--yes", "--pin-dir", str(lab.pin_dir("node1")))
    lab.exec("node1", command, check=True)


def test_everybody_runs_and_cleanup_takes_only_ours(lab: Lab, ours: str) -> None:
    with contextlib.ExitStack() as stack:
        neighbours = Neighbours(lab, stack)
        neighbours.add_tcx("tcx before us", "first")
        neighbours.add_filter("early filter", EARLY)
        neighbours.add_filter("late filter", LATE)
        alone = neighbours.attached()
        start(lab)
        neighbours.saw()
        talk(lab)
        assert neighbours.saw() == expected(ours)
        neighbours.add_tcx("tcx in front", "first")
        neighbours.add_tcx("tcx behind", "last")
        talk(lab)
        assert neighbours.saw() == expected(ours, in_front=True)
        lab.stop_agent("node1")
        talk(lab)
        assert neighbours.saw() == expected(ours, in_front=True)
        cleanup(lab)
        left = neighbours.attached()
        for direction in DIRECTIONS:
            ids = [
                int(libbpf.prog_info(neighbours.all[direction][name].prog_fd).id)
                for name in ("tcx in front", "tcx before us", "tcx behind")
            ]
            assert left[direction] == (ids, alone[direction][1])
        with connected(lab, "pod1", lab.find(BACKEND).addresses[0], TCP, port=7000) as sock:
            ask(sock, "directly")
        assert {seen for found in neighbours.saw().values() for seen in found.values()} == {
            "backend"
        }


def expected(ours: str, in_front: bool = False) -> dict[str, dict[str, str]]:
    """Whom each program sees the client talk to: coming from the pod, those behind us see the
    backend; on the way to it, those in front of us do. tcx runs before clsact."""
    behind: dict[str, set[str]] = {
        "tcx": {
            "ingress": {"tcx before us", "tcx behind", "early filter", "late filter"},
            "egress": {"tcx behind", "early filter", "late filter"},
        },
        "clsact": {"ingress": {"early filter", "late filter"}, "egress": {"late filter"}},
    }[ours]
    names = ["tcx before us", "early filter", "late filter"]
    names += ["tcx in front", "tcx behind"] if in_front else []
    return {
        "ingress": {n: "backend" if n in behind["ingress"] else "service" for n in names},
        "egress": {n: "service" if n in behind["egress"] else "backend" for n in names},
    }


def test_cleanup_leaves_nothing(lab: Lab) -> None:
    with contextlib.ExitStack() as stack:
        neighbours = Neighbours(lab, stack)
        before = neighbours.attached()
        qdiscs = lab.exec("node1", ["tc", "qdisc"], check=True).stdout
        start(lab)
        talk(lab)
        assert neighbours.attached() != before
        pin_dir = lab.pin_dir("node1")
        command = lbctl_command("cleanup", "--yes", "--pin-dir", str(pin_dir))
        refused = lab.exec("node1", command)
        assert refused.returncode != 0
        assert str(status.running_agent(pin_dir)) in refused.stderr
        talk(lab)
        lab.stop_agent("node1")
        assert any(pin_dir.rglob("*"))
        cleanup(lab)
        assert list(pin_dir.rglob("*")) == []
        assert status.read(pin_dir) is None
        assert neighbours.attached() == before
        assert lab.exec("node1", ["tc", "qdisc"], check=True).stdout == qdiscs
