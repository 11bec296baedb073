"""One node for the load test: a namespace, a cluster in a process of its own, an agent after the
other, and looking from outside at what they put into the kernel."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from ebpf import instance
from ebpf.instance import Instance
from ebpf.kernel import bpffs, testrun
from ebpf.maps import ArrayMap, HashMap
from lbctl import status
from lbctl.bench import packetcost
from tests.perf.support.scale_cluster import NAMESPACE, Command, Done, Ready, service_address
from tests.support.map_contents import content_of

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = Path(__file__).with_name("scale_cluster.py")
BOUND = 120.0
POLL = 0.0005
# What the agent alone writes: no start without a change may touch a byte of it.
_WRITTEN_BY_AGENT = (
    *("frontends", "services", "slots", "backends", "names"),
    *("source_ranges", "config"),
)

M = TypeVar("M", bound=msgspec.Struct)


class Memory(msgspec.Struct):
    """Of one process, in MB (10^6): all that is resident, without mapped kernel maps, its own."""

    resident: float
    without_maps: float
    anonymous: float


class Seen(msgspec.Struct):
    """Seconds from the server's write to the kernel, one per change, in order of sending."""

    delays: list[float]
    missing: int
    lag: float  # from the last write to the last change seen


class Node:
    """A context: namespaces, pins and processes end with it."""

    def __init__(self, services: int, endpoints: int, name: str = "sc-node") -> None:
        self.services = services
        self.name = name
        self.pin_dir = Path("/sys/fs/bpf") / name
        self.log = Path(f"/tmp/{name}.log")
        room = max(1024, services * 5 // 4)
        self._sizes = ["--services", str(room), "--endpoints", str(room * endpoints)]
        self._agent: subprocess.Popen[bytes] | None = None
        self._cluster: subprocess.Popen[bytes] | None = None
        self._counts = (services, endpoints)
        self._instance: Instance | None = None
        self._ids: dict[int, int] = {}
        self._surroundings: dict[str, str] = {}

    def __enter__(self) -> Node:
        _ip("netns", "add", self.name)
        try:
            _ip("-n", self.name, "link", "set", "lo", "up")
            self._cluster = subprocess.Popen(
                [*self._inside(), sys.executable, str(CLUSTER), *map(str, self._counts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self.url = self._answer(Ready).url
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        self.stop(signal.SIGKILL)  # all that it would leave in order is removed
        if self._cluster is not None:
            self._cluster.kill()
            self._cluster.communicate(timeout=10)  # closes the pipes as well
        self.forget()
        shutil.rmtree(_environment()["PYTHONPYCACHEPREFIX"], ignore_errors=True)
        _ip("netns", "delete", self.name)

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}"]

    # The agent.

    def start(self, *wrapper: str) -> float:
        """Start an agent, behind `wrapper` if given; seconds until everything is programmed."""
        command = [
            *self._inside(), *wrapper, sys.executable, "-m", "lbctl", "agent",
            "--api-server", self.url, "--node-name", "node-0", "--pin-dir", str(self.pin_dir),
            "--socket-lb", "off", "--healthz-bind-address", "off", *self._sizes,
        ]  # fmt: skip
        status.path_of(self.pin_dir).unlink(missing_ok=True)
        with self.log.open("ab") as log:
            began = time.monotonic()
            self._agent = subprocess.Popen(
                command, stderr=log, env=_environment() | self._surroundings
            )
        self._until(self._programmed, "the agent is ready")
        return time.monotonic() - began

    @contextmanager
    def without_caches(self) -> Iterator[None]:
        """Agents started meanwhile compile the programs, and Python's bytecode, themselves."""
        with tempfile.TemporaryDirectory(prefix="sc-cache-") as directory:
            own = {"LBCTL_CACHE_DIR": directory, "PYTHONPYCACHEPREFIX": f"{directory}/bytecode"}
            self._surroundings = own
            try:
                yield
            finally:
                self._surroundings = {}

    def _programmed(self) -> bool:
        assert self._agent is not None
        if self._agent.poll() is not None:
            raise RuntimeError(self.log.read_text()[-2000:])
        said = status.read(self.pin_dir)
        return said is not None and said.ready and said.services == self.services

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent; the data path stays."""
        self._close()
        if self._agent is not None:
            self._agent.send_signal(number)
            self._agent.wait(30)
            self._agent = None

    def forget(self) -> None:
        """Remove what agents left in the kernel, as if none had ever run."""
        self._close()
        if self.pin_dir.is_dir():
            instance.remove(self.pin_dir)
            if self.pin_dir.is_dir():
                bpffs.remove_tree(self.pin_dir)

    def memory(self) -> Memory:
        """Of the agent as it is now."""
        assert self._agent is not None
        text = Path(f"/proc/{self._agent.pid}/smaps").read_text()
        total = maps = anonymous = 0
        of_map = False
        for line in text.splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                of_map = "bpf-map" in line
            elif line.startswith("Rss:"):
                total += int(line.split()[1])
                maps += int(line.split()[1]) * of_map
            elif line.startswith("Anonymous:"):
                anonymous += int(line.split()[1])
        return Memory(*(round(n * 1024 / 1e6, 1) for n in (total, total - maps, anonymous)))

    def cpu_seconds(self) -> float:
        """That the agent has used."""
        assert self._agent is not None
        fields = Path(f"/proc/{self._agent.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # The kernel.

    def instance(self) -> Instance:
        """The maps, opened for reading."""
        if self._instance is None:
            self._instance = Instance.open(self.pin_dir)
            keys, values = self._instance.names.read_all()
            names = dict(
                zip(
                    (t.decode() for t in values["text"].tolist()),
                    keys["service"].tolist(),
                    strict=True,
                )
            )
            self._ids = {
                n: names[f"{NAMESPACE}/service-{n}:http/TCP/v4"] for n in range(self.services)
            }
        return self._instance

    def _close(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def kernel_memory(self) -> dict[str, int]:
        """Bytes by map, as the kernel accounts them."""
        found = self.instance()
        return {name: found.map(name).memory_bytes for name in found.map_names()}

    def open_flows(self, count: int) -> int:
        """Connections to the first service, as a pod opens them; how many flows there are."""
        found = self.instance()
        programs = instance.PinnedPrograms(self.pin_dir / "programs")
        try:
            for number in range(count):
                address, port = packetcost.client(packetcost.CLIENT4, number)
                for flags in (packetcost.SYN, packetcost.ACK):
                    frame = packetcost.header(address, service_address(0), port, 80, flags)
                    testrun.run(programs["entry_from_pod"], frame)
        finally:
            programs.close()
        return len(found.flow_tables[0].live()) // 2

    def fingerprint(self) -> dict[str, str]:
        """A hash of the contents of every map that only the agent writes."""
        return fingerprint(self.instance())

    def change(self, count: int, rate: float, first: int = 0) -> Seen:
        """Change one endpoint of each of `count` services, and watch their region words, also in a
        larger map that takes the place of theirs meanwhile."""
        words, place = self._words(), self._place()
        self._command(Command(count, rate, first))
        wanted = {self._ids[(first + at) % self.services] for at in range(count)}
        before, seen = words.copy(), dict[int, float]()
        end = time.monotonic() + count / rate + 30.0
        while len(seen) < len(wanted) and time.monotonic() < end:
            if self._place() != place:
                words, place = self._words(), self._place()
            now = words.copy()
            at = time.monotonic()
            for number in np.flatnonzero(now != before).tolist():
                seen.setdefault(number, at)
            before = now
            time.sleep(POLL)
        done = self._answer(Done)
        pairs = [
            (sent, seen.get(self._ids[n])) for n, sent in zip(done.services, done.sent, strict=True)
        ]
        delays = [got - sent for sent, got in pairs if got is not None]
        lag = max(seen.values(), default=0.0) - done.sent[-1]
        return Seen(delays, len(pairs) - len(delays), lag)

    def _place(self) -> int:
        """Another one when another map of services is pinned."""
        return (self.pin_dir / "maps" / "services").stat().st_ino

    def _words(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """Of all services, in the map that is pinned now."""
        self.instance()  # knows their ids, which they keep
        self._close()
        self._instance = Instance.open(self.pin_dir)
        found: np.ndarray[tuple[int], np.dtype[np.uint64]]
        found = self._instance.services.records["cluster"][: max(self._ids.values()) + 1]
        return found

    def _command(self, command: Command) -> None:
        assert self._cluster is not None
        assert self._cluster.stdin is not None
        self._cluster.stdin.write(msgspec.json.encode(command) + b"\n")
        self._cluster.stdin.flush()

    def _answer(self, kind: type[M]) -> M:
        assert self._cluster is not None
        assert self._cluster.stdout is not None
        line = self._cluster.stdout.readline()
        if not line:
            raise RuntimeError("the cluster's process ended")
        return msgspec.json.decode(line, type=kind)

    def _until(self, what: Callable[[], bool], name: str) -> None:
        end = time.monotonic() + BOUND
        while not what():
            if time.monotonic() > end:
                raise TimeoutError(f"not within {BOUND:g} s: {name}")
            time.sleep(0.005)


def fingerprint(found: Instance) -> dict[str, str]:
    """A hash of the contents of every map that only the agent writes."""
    return {name: _digest(found, name) for name in _WRITTEN_BY_AGENT}


def _digest(found: Instance, name: str) -> str:
    table = found.map(name)
    if isinstance(table, HashMap):
        keys, values = table.read_all()
        order = np.argsort(keys.view(f"V{keys.dtype.itemsize}"))
        return hashlib.sha256(keys[order].tobytes() + values[order].tobytes()).hexdigest()
    assert isinstance(table, ArrayMap)
    return hashlib.sha256(content_of(table, name)).hexdigest()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _environment() -> dict[str, str]:
    """Bytecode is kept as an installed package has it, but not in the source tree."""
    kept = {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"/tmp/sc-bytecode-{os.getpid()}"}
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | kept


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
