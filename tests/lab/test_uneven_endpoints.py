"""Endpoints of different speed: with least-connections the slow one gets less to do than by chance,
and clients wait less."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from lbctl.lab.topology import Pod
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    TIMEOUT,
    addresses,
    endpoint,
    inside,
    listen,
    new_socket,
)

pytestmark = pytest.mark.lab

# Seconds that a server works on a request, one at a time.
WORK = {"pod2": 0.02, "pod3": 0.002, "pod4": 0.002}
SLOW = "pod2"
ALGORITHMS = ("random", "least-connections")
WORKERS = 16  # of the client, each with one connection at a time
PER_ROUND = 150  # connections, times --soak
ROUNDS = 2  # of each algorithm, in turn


class Server:
    """Answers its name to each connection, in the order they came."""

    def __init__(self, lab: Lab, member: str) -> None:
        self.waiting = 0  # connections that are not answered yet
        self.found: list[int] = []  # how many of those each new one met
        self._name, self._work = member, WORK[member]
        self._listener = listen(lab, member, lab.find(member).addresses[0], TARGET, TCP)
        self._queue: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=do) for do in (self._accept, self._answer)]
        for thread in self._threads:
            thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                self.found.append(self.waiting)
                self.waiting += 1
                self._queue.put(connection)
        self._queue.put(None)

    def _answer(self) -> None:
        while connection := self._queue.get():
            time.sleep(self._work)
            with connection:
                connection.sendall(self._name.encode())
            self.waiting -= 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT)


@dataclass
class Seen:
    """What clients of a service saw, and what its slow endpoint had waiting for each new one."""

    seconds: list[float] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    met: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.servers.count(SLOW) / len(self.servers)

    @property
    def depth(self) -> float:
        return sum(self.met) / len(self.met)

    def quantile(self, part: float) -> float:
        return sorted(self.seconds)[int(part * len(self.seconds))] * 1000


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("u", nodes=2, pods=2)
    for name in ALGORITHMS:
        members = members_of(made)
        service, *slices = made.service(name, [Port(PORT, TARGET)], members)
        service["metadata"]["annotations"] = {"lbctl/algorithm": name}
        made.apply(name, [service, *slices])
        made.wait_programmed(f"default/{name}", members)
    yield made
    made.down()


def members_of(lab: Lab) -> list[Pod]:
    return [endpoint(lab, member) for member in WORK]


def call(lab: Lab, service: str, count: int, seen: Seen) -> None:
    """So many connections by several workers of pod1."""
    left = iter(range(count))
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in left:
                began = time.monotonic()
                with new_socket(0, TCP) as sock:
                    sock.connect((addresses(service)[0], PORT))
                    seen.servers.append(sock.recv(100).decode())
                seen.seconds.append(time.monotonic() - began)
        except OSError as error:
            failed.append(error)

    workers = [threading.Thread(target=inside, args=(lab, "pod1", work)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failed == []


@pytest.mark.alone
def test_the_slow_endpoint_gets_less_to_do(
    lab: Lab, pytestconfig: pytest.Config, record_property: Callable[[str, object], None]
) -> None:
    count = int(PER_ROUND * pytestconfig.getoption("soak"))
    seen = {name: Seen() for name in ALGORITHMS}
    with contextlib.ExitStack() as undo:
        servers = {member: Server(lab, member) for member in WORK}
        for server in servers.values():
            undo.callback(server.close)
        for turn in range(ROUNDS * len(ALGORITHMS)):
            name = ALGORITHMS[turn % len(ALGORITHMS)]
            begin = len(servers[SLOW].found)
            call(lab, name, count, seen[name])
            seen[name].met += servers[SLOW].found[begin:]
    for name, found in seen.items():
        said = f"share {found.share:.1%}, waiting {found.depth:.1f}"
        times = ", ".join(f"p{p} {found.quantile(p / 100):.0f} ms" for p in (50, 90, 99))
        record_property(name, f"{said}, {times}")
        print(f"\n{name}: {len(found.seconds)} connections; of the slow endpoint {said}; {times}")
    chance, fewer = seen["random"], seen["least-connections"]
    # A third, within five deviations and a half.
    deviation = (1 / 3 * 2 / 3 / len(chance.servers)) ** 0.5
    assert abs(chance.share - 1 / 3) < 5.5 * deviation
    assert fewer.share < chance.share * 0.75
    assert fewer.depth < chance.depth * 0.75
