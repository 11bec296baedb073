"""The table of flows under stress: two CPUs at once on a small table, and what must hold after.

stress.c opens, finds, changes and ends flows at random, and judges what it finds at once. When both
CPUs rest, everything can be counted: what is missing, twice, or torn is an error of the protocol.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ebpf.flowtable import CELL
from ebpf.growth import Growth
from ebpf.kernel import grace, testrun
from ebpf.maps.base import Records
from tests.kernel.support.flow_tables import PrivateTable, address
from tests.support.waiting import BOUND

RUNS = 2_000  # steps of one system call, some milliseconds
# A replacement in hash.h, by which what happens in nanoseconds takes longer.
SLOWLY = (
    '#define ORDERED asm volatile("" ::: "memory")',
    '#define ORDERED asm volatile("" ::: "memory"); bpf_ktime_get_ns(); bpf_ktime_get_ns()\n'
    "#define LINGER ORDERED; ORDERED; ORDERED; ORDERED; ORDERED; ORDERED; ORDERED; ORDERED",
)
VIOLATIONS = ("wrong", "duplicates", "apart", "lost")


def write_wanted(private: PrivateTable, keys: int, lasting: int = 0) -> None:
    """The flows that stress.c plays with. Pairs have one client and backend, and differ in the
    service alone, but for those that last; every fourth is masqueraded."""
    enums, family, records = private.enums, private.family, private.records("wanted")
    reply, side = enums["CELL_REPLY"], enums["CELL_SIDE"]
    for flow in range(keys + lasting):
        pair = flow >> 1 if flow < keys else 256 + flow
        cells = 4 if flow & 3 == 3 else 2
        client, backend, node, service = (
            address(base + number, family)
            for base, number in (
                (0x0A000000, pair), (0x0AF40000, pair), (0x0A010000, pair), (0x0A600000, flow),
            )
        )  # fmt: skip
        port = 1000 + pair
        parts = [
            (client, port, service, 80, backend, 8080, 0),
            (backend, 8080, client, port, service, 80, reply),
            (client, port, backend, 8080, node, port, reply | side),
            (backend, 8080, node, port, client, port, side),
        ]
        for which, (src, sport, dst, dport, addr, to, kind) in enumerate(parts):
            row = records[4 * flow + which : 4 * flow + which + 1]
            for place, value in (("src", src), ("dst", dst)):
                _set_address(row["key"][place], value, family)
            _set_address(row["addr"], addr, family)
            _set_address(row["client"], client, family)
            row["key"]["sport"], row["key"]["dport"], row["key"]["proto"] = sport, dport, 6
            row["port"], row["client_port"], row["cells"] = to, port, cells
            row["kind"] = kind | (enums["CELL_MASQUERADED"] if cells == 4 else 0)


def _set_address(field: np.ndarray, value: np.ndarray, family: str) -> None:
    if family == "6":
        field["w"][0] = value.view(np.uint32)
    else:
        field[0] = value[12:].view(np.uint32)[0]


def open_lasting(private: PrivateTable, first: int, count: int) -> None:
    """Flows that stress.c uses, and never ends."""
    enums, wanted = private.enums, private.records("wanted")
    for flow in range(first, first + count):
        rows = wanted[4 * flow : 4 * flow + int(wanted["cells"][4 * flow])]
        ring = np.zeros((1, len(rows)), CELL)
        for name in ("src", "dst"):
            ring[name][0] = _wide(rows["key"][name], private.family)
        ring["addr"][0] = _wide(rows["addr"], private.family)
        for name in ("sport", "dport", "proto"):
            ring[name][0] = rows["key"][name]
        for name in ("port", "client_port", "kind"):
            ring[name][0] = rows[name]
        ring["backend"], ring["service"] = 1 + flow, 1 + (flow >> 2)
        ring["state"] = enums["STATE_ESTABLISHED"]
        assert private.table.open(ring) == 1


def _wide(addresses: Records, family: str) -> Records:
    out = np.zeros((len(addresses), 16), np.uint8)
    if family == "6":
        out[:] = np.ascontiguousarray(addresses["w"]).view(np.uint8).reshape(-1, 16)
    else:
        out[:, 10:12] = 0xFF
        out[:, 12:] = np.ascontiguousarray(addresses).view(np.uint8).reshape(-1, 4)
    return out


def seed(private: PrivateTable, number: int | None = None) -> None:
    """Fresh counters, and another course of things."""
    threads = private.records("threads")
    threads[:] = np.zeros(1, threads.dtype)
    rng = np.random.default_rng(number)
    threads["rng"] = rng.integers(1, 1 << 63, len(threads), np.uint64)


def run(private: PrivateTable, seconds: float) -> int:
    """Two CPUs for so long, or until one of them has seen a violation; returns the steps."""
    stop = time.monotonic() + seconds
    with at_work(private) as steps:
        while time.monotonic() < stop and not violated(private):
            time.sleep(0.02)
    return sum(steps)


@contextmanager
def at_work(
    private: PrivateTable, program: str = "stress", runs: int = RUNS, pause: float = 0
) -> Iterator[list[int]]:
    """Two CPUs run `program`, each time that of the generation loaded last, until the block ends;
    gives the steps of each. `pause`: seconds after so many `runs`."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    steps, end = [0] * len(cpus), threading.Event()

    def work(number: int) -> None:
        os.sched_setaffinity(0, {cpus[number]})
        while not end.is_set():
            testrun.run(private.programs[program], bytes(64), runs)
            steps[number] += runs
            time.sleep(pause)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(cpus))]
    for worker in workers:
        worker.start()
    try:
        yield steps
    finally:
        end.set()
        for worker in workers:
            worker.join()


class Keeping(Growth):
    """Keeps the bank that was left, so that the programs for the next time are there already."""

    def tidy(self) -> None:
        pass


def grow(private: PrivateTable, buckets: int, keep: bool = False, steps: Sequence[int] = ()) -> int:
    """A whole growth, as the agent does it; returns how many flows moved. `steps` are those of who
    is at work."""
    growth, moved = (Keeping if keep else Growth)(private, private.family), 0
    growth.begin(buckets)
    _put_in_place(private, steps)
    growth.leave()
    _put_in_place(private, steps)
    for _ in range(1000):
        if not growth.left():
            break
        moved += growth.move(private.programs)
    growth.finish()
    _put_in_place(private, steps)
    return moved


def _put_in_place(private: PrivateTable, steps: Sequence[int]) -> None:
    """Each CPU takes the new programs when it is done with what it is at. A test run of many steps
    lets others run between them: it is over when its steps are counted, not after a grace."""
    private.load()
    before = [*steps]
    stop = time.monotonic() + BOUND
    while any(now == then for now, then in zip(steps, before, strict=True)):
        assert time.monotonic() < stop, "a CPU does not end what it is at"
        time.sleep(0.001)
    grace.wait()


def violated(private: PrivateTable) -> bool:
    threads = private.records("threads")
    return any(threads[name].any() for name in VIOLATIONS)


def noticed(private: PrivateTable, seconds: float) -> list[str]:
    """What is wrong, as soon as something is; looked for at rest every now and then."""
    stop = time.monotonic() + seconds
    found: list[str] = []
    while not found and time.monotonic() < stop:
        run(private, min(0.3, seconds))
        found = faults(private)
    return found


def totals(private: PrivateTable) -> dict[str, int]:
    """What both did."""
    threads = private.records("threads")
    names = [n for n in threads.dtype.names or () if n not in ("rng", "places", "pad")]
    return {name: int(threads[name].sum()) for name in names}


def faults(private: PrivateTable, lasting: int = 0) -> list[str]:
    """What is not as it has to be, now that nobody changes anything; empty if all is."""
    done = totals(private)
    said = [f"{name}: {done[name]}" for name in VIOLATIONS if done[name]]
    return [
        *said,
        *_control_faults(private),
        *_ring_faults(private),
        *_count_faults(private, done, lasting),
    ]


def _control_faults(private: PrivateTable) -> list[str]:
    """A tag where a live cell is, and none elsewhere."""
    said = []
    for bank in private.table.banks:
        tags = bank.control.view(np.uint8)
        head = bank.cells["head"]
        state = head & np.uint64(private.enums["STATE_MASK"])
        live = state >= private.enums["STATE_LIVE"]
        own = (head >> np.uint64(private.enums["HEAD_TAG_SHIFT"]) & np.uint64(0xFF)).astype("u1")
        if np.any(state[~live]):
            said.append(f"{np.count_nonzero(state[~live])} cells in transition")
        if np.any(tags[~live]):
            said.append(f"{np.count_nonzero(tags[~live])} tags without a live cell")
        if np.any(tags[live] != own[live]):
            said.append("a live cell whose tag is another")
    return said


def _ring_faults(private: PrivateTable) -> list[str]:
    """Every tuple once; each cell in a ring of two or four of its generation."""
    found = private.table.view()
    found = found[~found["moved"]]
    said = []
    tuples = np.array(
        [b"".join(cell[n].tobytes() for n in ("src", "dst", "sport", "dport")) for cell in found]
    )
    if len(np.unique(tuples)) != len(tuples):
        said.append("a tuple with two live cells")
    by_place = {int(cell["place"]): cell for cell in found}
    for cell in found:
        wanted = 4 if cell["kind"] & private.enums["CELL_MASQUERADED"] else 2
        at = cell
        for _ in range(wanted):
            following = by_place.get(int(at["next"]))
            if following is None or following["generation"] != cell["generation"]:
                said.append(f"the ring of the cell at {cell['place']} is broken")
                break
            at = following
        else:
            if at["place"] != cell["place"]:
                said.append(f"the ring of the cell at {cell['place']} does not close")
    return said[:5]


def _count_faults(private: PrivateTable, done: dict[str, int], lasting: int) -> list[str]:
    """Opened is ended, evicted or there; live counts are those of the flows that are there."""
    enums = private.enums
    found = private.table.view()
    forward = found[
        (found["kind"] & (enums["CELL_REPLY"] | enums["CELL_SIDE"]) == 0) & ~found["moved"]
    ]
    said = []
    left = lasting + done["opened"] - done["ended"] - private.table.evicted()
    if left != len(forward):
        said.append(f"{left} flows should be there, and {len(forward)} are")
    current = forward[~np.isin(forward["state"], _over(enums))]
    backends, services = private.records("backend_live"), private.records("service_counters")
    for name, counted, wanted in (
        ("backend", backends, current["backend"]),
        ("service", services["live"], current["service"]),
    ):
        recount = np.bincount(wanted, minlength=len(counted))[: len(counted)]
        if not np.array_equal(recount, counted.astype(np.int64)):
            said.append(f"live flows by {name} are {recount}, not {counted}")
    held = int(private.records(f"held{private.family}").sum())
    cells = np.where(forward["kind"] & enums["CELL_MASQUERADED"], 4, 2).sum()
    if held != cells:
        said.append(f"{held} cells are said to be held, and {cells} are")
    return said


def _over(enums: dict[str, int]) -> Sequence[int]:
    return enums["STATE_RESET"], enums["STATE_TIME_WAIT"]
