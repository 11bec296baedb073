"""The table of frontends: what the programs find of what the agent wrote, also while it writes.

LBCTL_FRONTEND_ROUNDS sets how many tables are filled and changed under look-ups, 30 unless set.
"""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from ebpf import maps
from ebpf.compile import compiler, source
from ebpf.compile.source import Unit
from ebpf.errors import MapFull
from ebpf.kernel import testrun
from ebpf.layouts import Bundle
from ebpf.maps.buckets import BucketTable, Places, Words, elements_for
from ebpf.programs import load
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends, _words
from lbctl.datapath.records import frontend_key, marker_key
from tests.kernel.support.world import mapped

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("LBCTL_FRONTEND_ROUNDS", "30"))
STEPS = 200  # changes of a round
AT_ONCE = 20_000  # look-ups of a system call
WATCHED = 64
STAYING = 8
FULL = 20  # keys, in three buckets of eight


def probes(directory: Path, family: str) -> Bundle:
    """frontends.c compiled with the headers of bpf_src."""
    joined = directory / "bpf_src"
    joined.mkdir()
    for path in (*source.source_dir().iterdir(), Path(__file__).parent / "support/frontends.c"):
        (joined / path.name).symlink_to(path)
    defines = (("FAMILY", family), ("WATCHED", str(WATCHED)))
    unit = Unit("frontends", "frontends.c", defines, source.family_unit(family).words)
    return compiler.bundle(directory=joined, units=[unit])


class Probe:
    """The programs of frontends.c on a table of their own."""

    def __init__(self, bundle: Bundle, keys: int) -> None:
        entries = {"frontends": elements_for(keys), "watched_keys": WATCHED, "watch_counts": 1}
        self.maps = {
            name: cast(maps.ArrayMap, maps.create(bundle.maps[name], n))
            for name, n in entries.items()
        }
        fds = {name: made.fd for name, made in self.maps.items()}
        self.programs = {name: load(bundle.programs[name], fds) for name in bundle.programs}
        self.table = Frontends(self.maps["frontends"])

    def ask(self, key: bytes, family: int) -> tuple[int, int] | None:
        """Service and flags, as find_frontend() has them."""
        found = self._run("ask", key, family)
        return (found >> 16, found & 0xFFFF) if found else None

    def ask_address(self, key: bytes, family: int) -> tuple[int, bool]:
        found = self._run("ask_address", key, family)
        return found >> 1, bool(found & 1)

    def _run(self, program: str, key: bytes, family: int) -> int:
        address = key[12:16].ljust(16, b"\0") if family == 4 else key[:16]
        frame = bytes(14) + address + key[16:19] + bytes(31)
        return testrun.run(self.programs[program], frame).retval & 0xFFFFFFFF

    def counts(self) -> dict[str, int]:
        row = self.maps["watch_counts"].records[0]
        return {name: int(row[name]) for name in row.dtype.names}

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)
        for made in self.maps.values():
            made.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    return {f: probes(tmp_path_factory.mktemp(f"probes{f}"), str(f)) for f in (4, 6)}


@pytest.fixture
def probe(bundles: dict[int, Bundle], request: pytest.FixtureRequest) -> Iterator[Probe]:
    made = Probe(bundles[request.param], 2000)
    yield made
    made.close()


BOTH = pytest.mark.parametrize(("probe", "family"), [(4, 4), (6, 6)], indirect=["probe"])


def addresses(family: int, count: int) -> list[bytes]:
    chance = random.Random(family)
    size = 4 if family == 4 else 16
    raw = [chance.randbytes(size) for _ in range(count)]
    return [bytes(10) + b"\xff\xff" + r if family == 4 else r for r in raw]


@BOTH
def test_the_programs_find_what_was_written_and_nothing_else(probe: Probe, family: int) -> None:
    """The hash and the layout are those of Python."""
    known = addresses(family, 600)
    entries = [
        (frontend_key(a, 80 + i % 3, (6, 17, 132)[i % 3]), i + 1, 1 << i % 8)
        for i, a in enumerate(known)
    ]
    probe.table.put(entries)
    for key, service, flags in entries:
        assert probe.ask(key, family) == (service, flags)
        port = int.from_bytes(key[16:18], "big")
        for other in (
            frontend_key(key[:16], port + 1, key[18]),
            frontend_key(key[:16], port, key[18] + 1),
            frontend_key(key[:15] + bytes((key[15] ^ 1,)), port, key[18]),
            marker_key(key[:16]),
        ):
            assert probe.ask(other, family) is None
    assert probe.table.delete([key for key, _, _ in entries[::2]]) == 300
    for index, (key, service, flags) in enumerate(entries):
        assert probe.ask(key, family) == (None if index % 2 == 0 else (service, flags))
    probe.table.put([(key, service + 7, 256) for key, service, _ in entries[1::2]])
    assert all(probe.ask(key, family) == (service + 7, 256) for key, service, _ in entries[1::2])


@BOTH
def test_addresses_and_endpoints_are_known_by_themselves(probe: Probe, family: int) -> None:
    cluster_ip, outer, endpoint, stranger = addresses(family, 4)
    probe.table.put([(frontend_key(cluster_ip, 80, 6), 1, consts.FRONTEND_CLUSTER_IP)])
    probe.table.put([(marker_key(cluster_ip), 0, consts.FRONTEND_ADDRESS)])
    probe.table.put([(marker_key(outer), 0, consts.FRONTEND_OUTER | consts.FRONTEND_SHARED)])
    words = np.dtype([("w", np.uint32, 4)])
    backends = np.zeros(3, np.dtype([("addr", words), ("port", np.uint16)]))
    backends["addr"]["w"][:2] = np.frombuffer(endpoint, np.uint32)
    backends["port"][:2] = socket.htons(8080)  # of two services; and an element without any
    probe.table.hold(backends)
    for address, flags in (
        (cluster_ip, consts.FRONTEND_ADDRESS),
        (outer, consts.FRONTEND_OUTER | consts.FRONTEND_SHARED),
        (endpoint, 0),
        (stranger, 0),
    ):
        asked = frontend_key(address, 8080, 0)
        assert probe.ask_address(asked, family) == (flags, address == endpoint)
        assert probe.ask_address(frontend_key(address, 80, 0), family) == (flags, False)
    asked = frontend_key(endpoint, 8080, 0)
    for left in (True, False):
        probe.table.release(backends[:1])
        assert probe.ask_address(asked, family) == (0, left)
    probe.table.release(backends[:1])  # what is not there is not missed


@BOTH
def test_a_table_that_nobody_wrote_to_is_empty(probe: Probe, family: int) -> None:
    assert probe.ask(bytes(19), family) is None
    assert probe.ask_address(bytes(19), family) == (0, False)


# ── while the agent writes ────────────────────────────────────────────────────────────────────


class NamedFirst(BucketTable):
    """Names a place, with the word of its key, before the key is there."""

    def _occupy(
        self, places: Places, keys: Words, payloads: Words, tags: npt.NDArray[np.uint8]
    ) -> None:
        self._write_tags(places, tags)
        self._store(places, self._cells[places, 3] | payloads)
        self._write_keys(places, keys)


class GoneBeforeThere(BucketTable):
    """Takes a key that moves out before it is put in again."""

    _moving = False

    def _make_room(self, *buckets: int) -> bool:
        self._moving = True
        try:
            return super()._make_room(*buckets)
        finally:
            self._moving = False

    def _occupy(
        self, places: Places, keys: Words, payloads: Words, tags: npt.NDArray[np.uint8]
    ) -> None:
        if self._moving:
            self._vacate(self._find(keys, self._hashed(keys)))
        super()._occupy(places, keys, payloads, tags)


def watched() -> list[tuple[bytes, int, int]]:
    """Keys with what they lead to; the first of them stay."""
    return [
        (frontend_key(mapped(f"10.96.0.{n}"), 80, 6), n + 1, 1 | 1 << 1 + n % 7)
        for n in range(WATCHED)
    ]


class Churn:
    """Comes and goes of keys in a table that is full of them, so that some have to move."""

    def __init__(self, table: BucketTable, seed: int) -> None:
        self.table = Frontends.__new__(Frontends)
        self.table._table = table
        self.keys = watched()
        self.chance = random.Random(seed)
        self.present: list[int] = []
        self.table.put(self.keys[:STAYING])

    def step(self) -> None:
        """One comes if there is room, else one goes; and one that stays changes its flags."""
        absent = sorted(set(range(STAYING, WATCHED)) - set(self.present))
        number = self.chance.choice(absent)
        try:
            self.table.put([self.keys[number]])
            self.present.append(number)
        except MapFull:
            gone = self.present.pop(self.chance.randrange(len(self.present)))
            self.table.delete([self.keys[gone][0]])
        key, service, flags = self.keys[self.chance.randrange(STAYING)]
        self.table.put([(key, service, flags & ~self.chance.randrange(2))])


def look_while_writing(bundle: Bundle, kind: type[BucketTable]) -> dict[str, int]:
    """What the judge counts, and how many of the keys that stay had to move meanwhile; each round
    in a table of its own, since a key moves once."""
    cpus = sorted(os.sched_getaffinity(0))
    sums = dict.fromkeys(("lookups", "found", "missing", "wrong", "moved"), 0)
    try:
        os.sched_setaffinity(0, {cpus[0]})
        for number in range(ROUNDS):
            probe = Probe(bundle, FULL)
            watch(probe)
            table = kind(probe.maps["frontends"])
            churn = Churn(table, number)
            staying = _words([key for key, _, _ in watched()[:STAYING]])
            before = table._find(staying, table._hashed(staying))
            with writing(churn, cpus[-1]) as child:
                while not os.waitpid(child, os.WNOHANG)[0]:
                    testrun.run(probe.programs["watch"], bytes(64), repeat=AT_ONCE)
            after = table._find(staying, table._hashed(staying))
            counts = probe.counts() | {"moved": int((before != after).sum())}
            sums = {name: total + counts[name] for name, total in sums.items()}
            probe.close()
    finally:
        os.sched_setaffinity(0, set(cpus))
    return sums


def watch(probe: Probe) -> None:
    """Tell the judge what to look for."""
    records = probe.maps["watched_keys"].records
    for number, (key, service, flags) in enumerate(watched()):
        field = records["key"]
        field[number] = np.frombuffer(key.ljust(24, b"\0"), field.dtype)[0]
        records["service"][number], records["flags"][number] = service, flags
        records["stays"][number] = number < STAYING


@contextmanager
def writing(churn: Churn, cpu: int) -> Iterator[int]:
    """A process that makes its changes, and ends."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.sched_setaffinity(0, {cpu})
            for _ in range(STEPS):
                churn.step()
            status = 0
        finally:
            os._exit(status)
    try:
        yield child
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


@pytest.mark.alone
def test_readers_see_no_torn_and_no_foreign_entry_and_miss_none_that_stays(
    bundles: dict[int, Bundle],
) -> None:
    counts = look_while_writing(bundles[4], BucketTable)
    assert counts["moved"] > 0
    assert counts["found"] > ROUNDS * AT_ONCE // WATCHED
    assert (counts["wrong"], counts["missing"]) == (0, 0)


@pytest.mark.alone
@pytest.mark.parametrize("kind", [NamedFirst, GoneBeforeThere])
def test_the_judge_notices_a_careless_writer(
    bundles: dict[int, Bundle], kind: type[BucketTable]
) -> None:
    """Or the test above could not fail."""
    counts = look_while_writing(bundles[4], kind)
    assert counts["wrong"] + counts["missing"] > 0
