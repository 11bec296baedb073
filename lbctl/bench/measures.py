"""The measuring itself: peers take turns, so that all see the same machine."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from lbctl.bench.dataset import TARGET_PORT, Dataset
from lbctl.bench.generator import Aim, Generator, Mode, Timing, monotonic
from lbctl.bench.peers import Peer
from lbctl.bench.records import (
    FLOOR,
    MANY_FLOWS,
    WITHOUT_SERVICES,
    Distribution,
    Record,
    Results,
    summary,
)
from lbctl.bench.testbed import Testbed
from lbctl.errors import LbError

PACKETS_PER_ROUNDTRIP = 2
_WRK_CONNECTIONS = 8
_START_SECONDS = 10.0


class Effort(msgspec.Struct, frozen=True):
    """How much is done: turns, and per turn connections, round trips, seconds of load tools."""

    turns: int = 30
    connections: int = 150
    roundtrips: int = 1000
    many: int = MANY_FLOWS  # connections open at once; fewer only try that it works
    many_turns: int = 12
    many_roundtrips: int = 4000
    load_turns: int = 2
    load_seconds: int = 1
    changes: int = 20
    change_seconds: float = 15.0  # per peer: slow ones get fewer changes
    packet_rounds: int = 11
    packet_repeat: int = 200_000

    @classmethod
    def quick(cls) -> Effort:
        return cls(
            turns=12,
            connections=100,
            roundtrips=500,
            many_turns=4,
            many_roundtrips=2000,
            load_turns=1,
            load_seconds=1,
            changes=6,
            change_seconds=4.0,
            packet_rounds=5,
            packet_repeat=100_000,
        )


class Measuring(msgspec.Struct, frozen=True):
    """All that the measures of one number of services share. The rule-less peer comes first."""

    testbed: Testbed
    data: Dataset
    peers: tuple[Peer, ...]
    aims: Mapping[str, Aim]
    generator: Generator
    effort: Effort
    results: Results
    progress: Callable[[str, str], None]  # what is being done, and how far it is

    @property
    def services(self) -> int:
        return self.data.services

    def rotated(self, turn: int) -> Sequence[Peer]:
        """The peers, another one first in each turn."""
        first = turn % len(self.peers)
        return (*self.peers[first:], *self.peers[:first])

    def miss(self, peer: str, measures: Sequence[str], reason: str) -> None:
        for measure in measures:
            self.results.miss(peer, self.services, measure, reason)


CONNECTION_MEASURES = ("connect_latency", "connection_rate", "roundtrip_added", "cpu_per_packet")
_MODES: tuple[Mode, ...] = ("connect", "cycle", "roundtrip")


class _Turns(msgspec.Struct):
    """What one peer's turns gave: microseconds per connection and round trip, connections per
    second, CPU microseconds per packet. All peers have the same number of turns."""

    latency: list[np.ndarray] = []
    rate: list[float] = []
    trip: list[float] = []  # medians
    cpu: list[float] = []
    failed: int = 0
    made: int = 0

    def add(self, mode: Mode, timing: Timing) -> None:
        self.failed += timing.failed
        self.made += timing.failed + (len(timing.ns) if mode != "roundtrip" else 1)
        if mode == "connect":
            self.latency.append(timing.ns / 1e3)
        elif mode == "cycle":
            self.rate.append(len(timing.ns) * 1e9 / float(timing.ns.sum()))
        else:
            self.trip.append(float(np.median(timing.ns)) / 1e3)
            self.cpu.append(timing.cpu_ns / 1e3 / (PACKETS_PER_ROUNDTRIP * len(timing.ns)))


def connections(run: Measuring) -> None:
    """connect_latency, connection_rate, roundtrip_added and cpu_per_packet of all peers."""
    turns = {peer.name: _Turns() for peer in run.peers}
    effort = run.effort
    for turn in range(effort.turns):
        run.progress("connections", f"turn {turn + 1} of {effort.turns}")
        for mode in _MODES:
            count = effort.roundtrips if mode == "roundtrip" else effort.connections
            for peer in run.rotated(turn):
                if peer.name not in turns:
                    continue
                try:
                    timing = run.generator.run(peer.name, mode, run.aims[peer.name], count)
                except LbError as error:
                    if peer.name == FLOOR:
                        raise
                    del turns[peer.name]
                    run.miss(peer.name, CONNECTION_MEASURES, error.message)
                else:
                    turns[peer.name].add(mode, timing)
    for name, mine in turns.items():
        run.results.add(_of_connections(run, name, mine, turns[FLOOR]))
        if mine.failed:
            run.results.about.failures.append(
                f"{name} at {run.services:,} services: {mine.failed} of {mine.made:,} connections "
                "had no answer within a second"
            )


def _of_connections(run: Measuring, name: str, mine: _Turns, floor: _Turns) -> list[Record]:
    """Ratios and differences are to the floor of the same turn, and then the median of those: what
    disturbed one disturbed the other."""
    count = run.services
    connects = np.concatenate(mine.latency)
    percentiles = tuple(round(float(v), 3) for v in np.percentile(connects, np.arange(101)))
    known = run.results.about.distributions
    known[:] = [d for d in known if (d.peer, d.services) != (name, count)]
    known.append(Distribution(name, count, percentiles))
    if name == FLOOR:
        middle = statistics.median(floor.trip)
        added = [abs(value - middle) for value in floor.trip]
    else:
        added = [a - b for a, b in zip(mine.trip, floor.trip, strict=True)]
    medians = [float(np.median(turn)) for turn in mine.latency]
    bare = [float(np.median(turn)) for turn in floor.latency]
    return [
        summary(name, count, "connect_latency", connects, paired(medians, bare)),
        summary(name, count, "connection_rate", mine.rate, paired(mine.rate, floor.rate)),
        summary(name, count, "roundtrip_added", added, paired(mine.trip, floor.trip)),
        summary(name, count, "cpu_per_packet", mine.cpu, paired(mine.cpu, floor.cpu)),
    ]


def paired(mine: Sequence[float], floor: Sequence[float]) -> float:
    """The median of the ratios of turns."""
    return statistics.median(a / b for a, b in zip(mine, floor, strict=True))


# Load tools


def loads(run: Measuring) -> None:
    """request_rate by wrk and throughput by iperf3, where they are installed."""
    if shutil.which("wrk") is None:
        _miss_all(run, "request_rate", "wrk is not installed (package wrk)")
    elif not run.generator.compiled:
        _miss_all(run, "request_rate", "needs a C compiler, for the HTTP server (package gcc)")
    else:
        with run.generator.serving_http(TARGET_PORT):
            _load_turns(run, "request_rate", _requests)
    if shutil.which("iperf3") is None:
        _miss_all(run, "throughput", "iperf3 is not installed (package iperf3)")
    else:
        _load_turns(run, "throughput", _throughput)


def _miss_all(run: Measuring, measure: str, reason: str) -> None:
    for peer in run.peers:
        run.miss(peer.name, [measure], reason)


def _load_turns(run: Measuring, measure: str, once: Callable[[Measuring, str], float]) -> None:
    samples: dict[str, list[float]] = {}
    failed: set[str] = set()
    for turn in range(run.effort.load_turns):
        for peer in run.rotated(turn):
            if peer.name in failed or peer.saved:
                continue
            run.progress(measure, f"turn {turn + 1} of {run.effort.load_turns}, {peer.name}")
            try:
                samples.setdefault(peer.name, []).append(once(run, peer.name))
            except subprocess.TimeoutExpired as error:
                failed.add(peer.name)
                run.miss(peer.name, [measure], f"no end within {error.timeout:g} s: it stood still")
            except LbError as error:
                failed.add(peer.name)
                run.miss(peer.name, [measure], error.message)
    for peer in run.peers:
        if peer.saved:
            run.miss(peer.name, [measure], "not measured with saved rules")
        elif peer.name not in failed:
            mine, floor = samples[peer.name], samples.get(FLOOR, [])
            ratio = paired(mine, floor) if len(mine) == len(floor) else None
            run.results.add([summary(peer.name, run.services, measure, mine, ratio)])


def _requests(run: Measuring, peer: str) -> float:
    """Requests per second over a few kept-alive connections."""
    address, port = run.aims[peer].targets[0]
    seconds = run.effort.load_seconds
    tool = ["wrk", "-t1", f"-c{_WRK_CONNECTIONS}", f"-d{seconds}s", f"http://{address}:{port}/"]
    client = run.testbed.sites[peer].client
    done = run.testbed.run_in(client, peer, tool, timeout=seconds + _START_SECONDS)
    for line in done.stdout.splitlines():
        if line.startswith("Requests/sec:"):
            if (rate := float(line.split()[1])) > 0:
                return rate
            raise LbError("wrk: no request was answered")
    raise LbError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")


class _Received(msgspec.Struct):
    bits_per_second: float


class _End(msgspec.Struct):
    sum_received: _Received


class _Iperf(msgspec.Struct):
    end: _End


def _throughput(run: Measuring, peer: str) -> float:
    """Gbit/s of one connection, as the receiver counts them."""
    address, port = run.aims[peer].targets[0]
    seconds, listen = run.effort.load_seconds, run.aims[peer].port
    serve = ["iperf3", "-s", "-1", "--forceflush", "-p", str(listen)]
    command = run.testbed.command(peer, serve, run.testbed.server)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            while "listening" not in (line := server.stdout.readline()):
                if not line:
                    raise LbError("iperf3: the server does not start")
            tool = ["iperf3", "-c", address, "-p", str(port), "-t", str(seconds), "-J"]
            client = run.testbed.sites[peer].client
            done = run.testbed.run_in(client, peer, tool, timeout=seconds + _START_SECONDS)
        finally:
            server.kill()
    try:
        found = msgspec.json.decode(done.stdout, type=_Iperf)
    except msgspec.DecodeError:
        raise LbError(f"iperf3: {done.stdout.strip()[-200:]} {done.stderr.strip()}") from None
    return found.end.sum_received.bits_per_second / 1e9


# Changes


def changes(run: Measuring) -> None:
    """change_time: from replacing a service's endpoints by one until a connection reaches it."""
    for peer in run.peers:
        if peer.name in WITHOUT_SERVICES:
            continue
        try:
            times = _changes_of(run, peer)
        except LbError as error:
            run.miss(peer.name, ["change_time"], error.message)
            continue
        run.results.add([summary(peer.name, run.services, "change_time", times)])


def _changes_of(run: Measuring, peer: Peer) -> list[float]:
    """Milliseconds of each change; at least one."""
    data = run.data
    target = data.targets_of([data.changing])[0]
    aim = Aim((target,), run.aims[peer.name].port)
    old = data.backends(data.changing)
    end = time.monotonic() + run.effort.change_seconds
    times: list[float] = []
    while len(times) < run.effort.changes and (not times or time.monotonic() < end):
        run.progress(f"changes, {peer.name}", f"{len(times) + 1} of {run.effort.changes}")
        new = [data.replacement(len(times))]
        with run.generator.watching(peer.name, aim, new[0]) as waiting:
            start = monotonic()
            peer.change(old, new)
            times.append((waiting.seen_at() - start) * 1e3)
        old = new
    return times
