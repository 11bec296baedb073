"""The vectors where XDP sees a packet first: what the vectors want dropped it may drop, everything
else goes up to TC as it came, which answers it as ever."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from ebpf.compile import compiler
from ebpf.kernel import testrun
from ebpf.layouts import Bundle
from ebpf.programs import Generation
from lbctl.trace.flows import Flow
from lbctl.trace.packets import Ends, frame
from lbctl.trace.private import PrivateNode
from lbctl.trace.programs import trace_bundle
from tests.conformance.test_vectors import needs_shared
from tests.support.vector_asking import flow_of, room_for, state
from tests.support.vector_files import Case, Json, own_cases, shared_cases

XDP_DROP, XDP_PASS = 1, 2
_PROGRAMS = ("xdp_uplink", "xdp_forward4", "xdp_forward6")
_LOOPBACK = 1  # a test run's device; its address is zero
CLIENT_PORT = 40000


@pytest.fixture(scope="module")
def drivers() -> Bundle:
    """Of the programs that handle traffic, those of drivers alone."""
    live = compiler.bundle()
    wanted = {name: live.programs[name] for name in _PROGRAMS}
    return msgspec.structs.replace(live, programs=wanted)


@needs_shared
def test_shared_vectors(drivers: Bundle, tmp_path: Path) -> None:
    seen = at_drivers(drivers, shared_cases(), tmp_path)
    assert seen[XDP_DROP, "drop"]
    assert seen[XDP_PASS, "forward"]


@pytest.mark.kernel
def test_own_vectors(drivers: Bundle, tmp_path: Path) -> None:
    assert at_drivers(drivers, own_cases(), tmp_path)[XDP_DROP, "drop"]


def at_drivers(bundle: Bundle, cases: Iterable[Case], directory: Path) -> Counter[tuple[int, str]]:
    """How often the programs said what of a flow that a vector wants to end so."""
    found: Counter[tuple[int, str]] = Counter()
    steps = [(case, step, state(case, step, directory)) for case in cases for step in case.steps]
    room = room_for([now for _, _, now in steps])
    with PrivateNode(trace_bundle(), room, steps[0][2][1]) as node:
        node.maps.xdp_devices.put(struct.pack("=I", _LOOPBACK), bytes(8))
        with Generation.load(bundle, node.maps.fds(), partial=True) as generation:
            for case, step, now in steps:
                node.apply(*now)
                found += _answers(generation.fds["xdp_uplink"], case, step, node)
    return found


def _answers(program: int, case: Case, step: Json, node: PrivateNode) -> Counter[tuple[int, str]]:
    found: Counter[tuple[int, str]] = Counter()
    for flow in step["flows"]:
        asking = flow_of(flow)
        if (asking.arrives or node.origin(asking)) == "uplink":
            end = at_driver(program, asking), flow["expect"]["verdict"]
            assert end[0] == XDP_PASS or end == (XDP_DROP, "drop"), (case.name, flow)
            found[end] += 1
    return found


def at_driver(program: int, flow: Flow) -> int:
    """What it says of the flow's first packet, which it must leave as it is."""
    sent = frame(Ends(flow.source, CLIENT_PORT, flow.destination, flow.port), flow.protocol)
    done = testrun.run(program, sent)
    assert done.packet == sent
    return done.retval
