"""Guards what a packet costs: by counts, and by ratios to what is inevitable on the machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ebpf.kernel import fields as kernel_fields
from ebpf.kernel import libbpf
from lbctl.bench import packetcost as cost
from lbctl.bench.packetcost import Bench

pytestmark = [pytest.mark.kernel, pytest.mark.perf]

# In what the inevitable costs on the same machine (`packetcost.yardstick`). Nanoseconds mean
# nothing elsewhere, and ratios not much: machines that need 11 and 20 ns for a lookup both need 60
# for an established packet, which is 4.7 and about 3 yardsticks; of a new flow, 2.5 here. So these
# bounds are half as much again as the worse machine, and guard against what no count shows: memory
# that is waited for, locked instructions, longer walks. COUNTS finds one helper or lookup more.
BOUNDS = {
    "not service, IPv4": 3,
    "not service, IPv6": 3,
    "not service, to the pod": 3,
    "established, IPv4": 7,
    "established reply, IPv4": 7,
    "established, IPv6": 8,
    "established reply, IPv6": 8,
    "new flow, IPv4": 4.5,
    "new flow, IPv6": 4.5,
}
# They hold where programs can read the kind of checksum; else a call of a helper comes on top.
HELPER = 3


class Counts(NamedTuple):
    """Of one program, as compiled and as loaded. Other compilers and kernels differ a little."""

    static: int  # instructions; growth here is growth in the cache that every packet needs
    verified: int  # instructions the verifier walked through; growth here is longer ways
    calls: int  # of helpers, lookups in maps among them: as it is, without room for one more


# Of what every packet runs, and every packet of a flow that is established.
COUNTS = {
    "entry_from_pod": Counts(60, 80, 3),
    "entry_to_pod": Counts(60, 80, 3),
    # Two calls of each are of fragments, three where one may be early (bpf_src/stash.h).
    "from_pod4": Counts(1480, 6500, 31),
    "from_pod6": Counts(2060, 80000, 37),
    "to_pod4": Counts(500, 3400, 14),
    "to_pod6": Counts(890, 31000, 20),
    "service4": Counts(880, 5700, 30),
    "service6": Counts(1010, 6400, 32),
    # Three calls of each are of packets without a flow (bpf_src/outgoing.h), and 20 instructions of
    # the number a packet acknowledges.
    "reply4": Counts(670, 2700, 21),
    "reply6": Counts(710, 2800, 23),
}
CALL = 0x85  # BPF_JMP | BPF_CALL
ROUNDS = 20  # at most


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        with cost.bench() as made:
            yield made
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("name", BOUNDS)
def test_cost_of_a_packet(bench: Bench, name: str) -> None:
    case = next(case for case in cost.CASES if case.name == name)
    repeat = min(case.repeat, 100_000)
    bound = BOUNDS[name]
    if name.startswith("established") and not kernel_fields.checksum_place():
        bound += HELPER
    # The two of a round have the same clock and neighbours, as good as it goes.
    ratios: list[float] = []
    for _ in range(ROUNDS):
        packet = cost.measure(bench, case, 3, repeat).median
        ratios.append(packet / cost.yardstick(bench, case, 3, repeat).median)
        bench.clear_flows()
        if len(ratios) > 2 and statistics.median(ratios) < bound:
            return
    pytest.fail(f"{name}: {statistics.median(ratios):.1f} yardsticks, {bound} allowed")


@pytest.mark.parametrize("name", COUNTS)
def test_counts(bench: Bench, name: str) -> None:
    insns = bench.bundle.programs[name].insns
    fd = {**bench.generation.fds, **bench.generation.tails}[name]
    calls = sum(insns[at] == CALL for at in range(0, len(insns), 8))
    found = Counts(len(insns) // 8, libbpf.verified(fd), calls)
    assert all(have <= most for have, most in zip(found, COUNTS[name], strict=True)), found
