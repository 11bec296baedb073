"""Backend sets that change under traffic: who may answer, and what of open conversations."""

from __future__ import annotations

import bisect
import contextlib
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lbctl.inspect import services
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Port
from tests.lab.support.labs import (
    PORT,
    PORTS,
    TARGET,
    TCP,
    UDP,
    Reply,
    Responder,
    addresses,
    ask,
    client,
    connected,
    counted,
    endpoint,
    publish,
)

pytestmark = pytest.mark.lab

UPDATES = 1000
REQUESTS = 10_000
RATE = 800  # per second
LIMIT = 120.0  # seconds for all of them
EVERYONE = ("pod1", "pod2", "pod3", "pod4", "node1", "node2")
CLIENT = "pod1"
TROUBLE = (
    "no_endpoint",
    "unknown_port",
    "unallocated",
    "no_flow_reset",
    "flows_full",
    "ports_exhausted",
    "rewrite_failed",
    "internal",
)


@pytest.fixture(scope="module")
def responder() -> Iterator[Responder]:
    with Responder() as made:
        yield made


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab], responder: Responder) -> Iterator[Lab]:
    made = make_lab("u", nodes=2, pods=2)
    responder.serve(made, EVERYONE)
    yield made
    made.down()


@dataclass(frozen=True)
class Era:
    """A backend set, from the moment it was written down to when it was in the maps."""

    members: frozenset[str]
    written: float
    programmed: float


@dataclass(frozen=True)
class Request:
    start: float
    end: float
    kind: str
    outcome: str  # who answered, or "!" and why nobody did


class Switcher:
    """Changes the members of one service again and again, and takes the time of each change."""

    def __init__(self, lab: Lab, service: str) -> None:
        self._lab = lab
        self._service = service
        self.eras: list[Era] = []

    def switch(self, members: frozenset[str]) -> None:
        endpoints = [endpoint(self._lab, member) for member in sorted(members)]
        wanted = [{pod.addresses[family] for pod in endpoints} for family in (0, 1)]
        written = time.monotonic()
        self._lab.apply(self._service, self._lab.service(self._service, PORTS, endpoints))
        while not self._leads_to(wanted):
            assert time.monotonic() < written + 10, "the agent does not follow"
            time.sleep(0.001)
        self.eras.append(Era(members, written, time.monotonic()))

    def _leads_to(self, wanted: list[set[str]]) -> bool:
        """Do new flows go to these addresses, and may no old one stay elsewhere? Opened anew: so
        many changes make maps grow."""
        with open_instance(self._lab.pin_dir("node1")) as instance:
            backends = instance.backends.records
            serving = backends["flags"] & instance.enums["BACKEND_SERVING"] != 0
            for row in services.show(instance, f"default/{self._service}"):
                expected = wanted[row.name.family == "v6"]
                if {backend.address for backend in row.backends} != expected:
                    return False
                if (serving & (backends["service"] == row.id)).sum() != len(expected):
                    return False
            return True


def may_answer(eras: list[Era], request: Request) -> set[str]:
    """Everyone in a set that was in force at some time between a request's start and its end: from
    when it was written down until the next one was in the maps."""
    allowed: set[str] = set()
    last = bisect.bisect_right(eras, request.end, key=lambda era: era.written)
    for index in range(last - 1, -1, -1):
        allowed |= eras[index].members
        if eras[index].programmed < request.start:
            break
    return allowed


def request_of(line: str) -> Request:
    start, end, kind, outcome = line.split(" ", 3)
    return Request(float(start), float(end), kind, outcome)


@contextlib.contextmanager
def requests(lab: Lab, targets: tuple[str, str], log: Path) -> Iterator[subprocess.Popen[str]]:
    script = str(Path(__file__).with_name("support") / "request_log.py")
    argv = [sys.executable, "-S", script, str(REQUESTS), str(RATE), *targets]
    with log.open("w") as output, lab.popen(CLIENT, argv, stdout=output) as process:
        try:
            yield process
        finally:
            process.kill()


def test_requests_while_the_backend_set_changes_a_thousand_times(lab: Lab, tmp_path: Path) -> None:
    """Every request is answered, by somebody who was in the set before a change or after it.

    Who leaves the set keeps running, as pods do while they terminate: so nothing may be lost, not
    only nothing to those that stay.
    """
    chance = random.Random(4)
    members = frozenset(EVERYONE[1:3])
    publish(lab, {"busy": members}, nodes=["node1"])
    with contextlib.ExitStack() as stack:
        switcher = Switcher(lab, "busy")
        switcher.switch(members)
        process = stack.enter_context(requests(lab, addresses("busy"), tmp_path / "log"))
        limit = time.monotonic() + LIMIT
        while process.poll() is None:
            others = [frozenset(chance.sample(EVERYONE, chance.randint(1, 4))) for _ in range(9)]
            members = next(other for other in others if other != members)
            switcher.switch(members)
            if len(switcher.eras) == UPDATES:
                process.terminate()  # it goes on until it has made its requests
            assert time.monotonic() < limit
    made = [request_of(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (len(made) >= REQUESTS, len(switcher.eras) >= UPDATES) == (True, True)
    lost = [request for request in made if request.outcome.startswith("!")]
    assert not lost, f"{len(lost)} lost: {trouble(lab)}"
    stray = [r for r in made if r.outcome not in may_answer(switcher.eras, r)]
    assert not stray
    assert set(Counter(request.outcome for request in made)) == set(EVERYONE)
    assert trouble(lab) == {}


def trouble(lab: Lab) -> dict[str, int]:
    """Packets that met with a fate that none should have met with."""
    counts = {reason: counted(lab, "node1", reason) for reason in TROUBLE}
    return {reason: count for reason, count in counts.items() if count}


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_datagrams_move_on_when_their_endpoint_leaves(lab: Lab, family: int) -> None:
    publish(lab, {"moving": ["pod2", "pod3"]}, nodes=["node1"])
    with contextlib.ExitStack() as stack:
        address = addresses("moving")[family]
        socks = [
            stack.enter_context(connected(lab, CLIENT, address, UDP, source=21000 + number))
            for number in range(28)
        ]
        first = [ask(sock, "first") for sock in socks]
        assert {reply.server for reply in first} == {"pod2", "pod3"}
        assert [ask(sock, "again").server for sock in socks] == [r.server for r in first]
        before = counted(lab, "node1", "flow_moved")
        publish(lab, {"moving": ["pod3", "pod4"]}, nodes=["node1"])
        moved = [ask(sock, "after").server for sock in socks]
        assert set(moved) <= {"pod3", "pod4"}
        for was, now in zip(first, moved, strict=True):
            assert was.server == "pod2" or now == "pod3"  # whose endpoint stays, stays
        gone = sum(reply.server == "pod2" for reply in first)
        assert counted(lab, "node1", "flow_moved") == before + gone


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_datagrams_stop_with_the_last_endpoint_and_with_the_service(
    lab: Lab, responder: Responder, family: int
) -> None:
    publish(lab, {"ending": ["pod2"]}, nodes=["node1"])
    with connected(lab, CLIENT, addresses("ending")[family], UDP) as sock:
        assert ask(sock, "first").server == "pod2"
        publish(lab, {"ending": []}, nodes=["node1"])
        with pytest.raises(ConnectionRefusedError):
            ask(sock, "without endpoints")
        publish(lab, {"ending": ["pod3"]}, nodes=["node1"])
        assert ask(sock, "with another one").server == "pod3"
        lab.withdraw("ending")
        lab.wait_gone("default/ending", nodes=["node1"])
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(sock, "without the service")
    heard = {text for _, text in responder.heard}
    assert "first" in heard
    assert not heard & {"without endpoints", "without the service"}


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("backend", ["pod1", "pod2", "pod3", "node1", "node2"])
def test_established_connections_outlive_endpoint_port_and_service(
    lab: Lab, backend: str, family: int
) -> None:
    name = f"lasting-{backend}"
    address = addresses(name)[family]
    publish(lab, {name: [backend]}, nodes=["node1"])
    with connected(lab, CLIENT, address, TCP) as sock:
        first = ask(sock, "first")
        assert first.server == backend
        publish(lab, {name: []}, nodes=["node1"])
        assert ask(sock, "without its endpoint") == again(first, "without its endpoint")
        late = client(lab, CLIENT, family, TCP)
        with late, pytest.raises(ConnectionRefusedError):
            late.connect((address, PORT))
        other = Port(PORT + 1, TARGET, "other")
        endpoints = [endpoint(lab, "pod4")]
        lab.apply(name, lab.service(name, [other], endpoints))
        lab.wait_programmed(f"default/{name}", endpoints, ["node1"])
        assert ask(sock, "without its port") == again(first, "without its port")
        lab.withdraw(name)
        lab.wait_gone(f"default/{name}", nodes=["node1"])
        assert ask(sock, "without its service") == again(first, "without its service")
        assert ask(sock, "bye") == again(first, "bye")
        assert sock.recv(10) == b""


def again(reply: Reply, text: str) -> Reply:
    return replace(reply, text=text)
