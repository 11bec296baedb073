"""Each map is filled by what its owners may do: who was there goes on, and the status says which
room is full and which option gives more of it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject, Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, steady_lab, targets
from tests.lab.support.faults import answers, frontends, service, wait_said, wait_silent
from tests.lab.support.labs import (
    PORT,
    PORTS,
    TARGET,
    TCP,
    addresses,
    ask,
    client,
    inside,
    new_socket,
    publish,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SERVERS = ("pod2", "pod3")
SERVICES, ENDPOINTS, FLOWS = 64, 128, 512
CROWD = 100  # services of one port and one family
SOCKETS = 66_000  # the maps of sockets have room for 65,536
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
# Connects datagram sockets to a service, one after the other, as a resolver does.
MANY_SOCKETS = """
import socket, sys
for _ in range(int(sys.argv[3])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((sys.argv[1], int(sys.argv[2])))
print("done")
"""


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    small = AgentOptions(services=SERVICES, endpoints=ENDPOINTS, flows=FLOWS)
    with steady_lab(make_lab, "fm", SERVERS, nodes=1, pods=3, options=small) as made:
        yield made


@pytest.fixture
def traffic(lab: Lab) -> Iterator[Bystanders]:
    """Few members, so that their own flows are far fewer than there is room for; and none that
    fills the tables, since whoever does is the first to be refused."""
    ways = {"pod3": ("cluster",), "node1": ("cluster",), "outside": ("node1",)}
    with bystanders(lab, targets(lab, SERVERS, ways)) as made:
        yield made


@pytest.fixture
def withdrawn(lab: Lab) -> Iterator[None]:
    yield
    for name in ("crowd", "large", "late"):
        lab.withdraw(name)
    wait_until(lambda: not any(frontends(lab, "node1", name) for name in ("large", "late")))
    for word in ("crowd", "large"):
        wait_silent(lab, "node1", word)


def crowd(lab: Lab, number: int = CROWD) -> list[JsonObject]:
    """Small services of one kind, of one age: none is greedier than another."""
    found: list[JsonObject] = []
    for i in range(number):
        own = (f"10.96.200.{i + 1}",)
        found += service(lab, f"crowd-{i:03}", ["pod2"], [Port(PORT, TARGET)], addresses=own)
    return found


def working(lab: Lab, services: Sequence[int]) -> set[int]:
    """Which of the crowd answer."""
    return {
        i
        for i in services
        if answers(lab, "pod1", f"10.96.200.{i + 1}", kinds=[TCP], times=1) == {"pod2"}
    }


@pytest.mark.usefixtures("withdrawn")
def test_services(lab: Lab, traffic: Bystanders) -> None:
    """Those that are served stay served when the agent starts again, and when one goes, one that
    had to wait has its place."""
    lab.apply("crowd", crowd(lab))
    wait_said(lab, "node1", "crowd", "--services")
    served = [i for i in range(CROWD) if frontends(lab, "node1", f"crowd-{i:03}")]
    assert SERVICES // 2 < len(served) < SERVICES
    assert working(lab, served[:3] + served[-3:]) == set(served[:3] + served[-3:])
    lab.restart_agent("node1")
    lab.wait_ready()
    wait_said(lab, "node1", "crowd", "--services")
    assert [i for i in range(CROWD) if frontends(lab, "node1", f"crowd-{i:03}")] == served
    traffic.unharmed()
    gone = served[5]
    left = [o for o in crowd(lab) if f"crowd-{gone:03}" not in o["metadata"]["name"]]
    lab.apply("crowd", left)
    waiting = [i for i in range(CROWD) if i not in served]
    wait_until(lambda: any(frontends(lab, "node1", f"crowd-{i:03}") for i in waiting))


@pytest.mark.usefixtures("withdrawn")
def test_frontends(lab: Lab, traffic: Bystanders) -> None:
    """A service with far more external addresses than there is room for."""
    external = [f"192.0.2.{i}" for i in range(120, 250)]
    external += [f"2001:db8:2::{i:x}" for i in range(0x1000, 0x1000 + 2000)]
    lab.apply("large", service(lab, "large", ["pod2"], spec={"externalIPs": external}))
    wait_said(lab, "node1", "default/large", "--services")
    publish(lab, {"late": ["pod3"]})
    assert answers(lab, "pod1", addresses("late")[1]) == {"pod3"}
    traffic.unharmed()


@pytest.mark.usefixtures("withdrawn")
def test_slots_and_backends(lab: Lab, traffic: Bystanders) -> None:
    found, *slices = service(lab, "large", ["pod2"])
    for family, each in enumerate(slices):
        each["endpoints"] = [
            {"addresses": [(f"10.244.9.{i}", f"fd00:10:244:9::{i:x}")[family]]}
            for i in range(1, 201)
        ]
    lab.apply("large", [found, *slices])
    wait_said(lab, "node1", "default/large", "--endpoints")
    publish(lab, {"late": ["pod3"]})
    publish(lab, {"late": ["pod2", "pod3"]})
    assert answers(lab, "pod1", addresses("late")[0]) <= {"pod2", "pod3"}
    traffic.unharmed()


@pytest.mark.usefixtures("withdrawn")
def test_source_ranges(lab: Lab, traffic: Bystanders) -> None:
    """A service that cannot keep others out, for want of room, does not let them in."""
    ranges = [f"198.18.{i}.0/24" for i in range(250)] + ["10.244.1.0/24"]
    ranges += [f"2001:db8:{i:x}::/48" for i in range(1, 300)]
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}
    ingress = ("192.0.2.70", "2001:db8:2::70")
    lab.apply("large", service(lab, "large", ["pod2"], PORTS, spec, ingress=ingress))
    wait_said(lab, "node1", "default/large", "--services")
    publish(lab, {"late": ["pod3"]})
    assert answers(lab, "pod1", addresses("late")[0]) == {"pod3"}
    for address in ingress:
        assert answers(lab, "outside", address, times=1) == {"nobody"}
    traffic.unharmed()


def lives(sock: socket.socket, connection: int) -> bool:
    """Whether this still is the connection it was."""
    try:
        return ask(sock, "still there").connection == connection
    except OSError:
        return False


def is_connected(sock: socket.socket) -> bool:
    try:
        return bool(sock.getpeername())
    except OSError:
        return False


@FAMILY
def test_flows(lab: Lab, family: int) -> None:
    """Twice as many connections as there is room for, all of one pod, and held open. Of these some
    may be refused; others' are not harmed, and have room."""
    where, outer = (addresses("steady")[family], PORT), STEADY.where(lab, "node1", family)
    with contextlib.ExitStack() as stack:
        ways = [("pod1", where)] * (FLOWS // 8) + [("pod3", where), ("outside", outer)] * 8
        held = []
        for number, (member, address) in enumerate(ways):
            sock = stack.enter_context(client(lab, member, family, TCP))
            sock.connect(address)
            held.append((sock, ask(sock, f"first {number}").connection))
        others = [stack.enter_context(client(lab, "pod1", family, TCP)) for _ in range(2 * FLOWS)]
        for sock in others:
            sock.setblocking(False)
            sock.connect_ex(where)
        time.sleep(3)
        late = [sock for sock in others if is_connected(sock)]
        assert len(late) >= FLOWS // 4
        wait_said(lab, "node1", f"flows{'46'[family]}", "--flows")
        for member, address in ways[-16:]:
            with client(lab, member, family, TCP) as sock:
                sock.connect(address)
                assert ask(sock, "and another").server in SERVERS
        # Those that were there while there was room for everybody.
        lost = [number for number, (sock, known) in enumerate(held) if not lives(sock, known)]
        assert lost == [], f"{len(lost)} of the first {len(held)} connections"


def test_affinity(lab: Lab, traffic: Bystanders) -> None:
    """More clients than the table has room for; each is served, and one that keeps calling keeps
    its endpoint."""
    spec = {"sessionAffinity": "ClientIP"}
    lab.apply("late", service(lab, "late", SERVERS, spec=spec))
    wait_until(lambda: (addresses("late")[1], PORT) in frontends(lab, "node1", "late"))
    # Each is a neighbour of node1's, of which a kernel keeps a thousand.
    clients = [f"fd00:18::1:{i:x}" for i in range(1, FLOWS + FLOWS // 4)]
    batch = "\n".join(f"address add {each}/128 dev eth0 nodad" for each in clients)
    lab.exec("outside", ["ip", "-batch", "-"], stdin=batch, check=True)

    def call(source: str) -> str:
        with new_socket(1, TCP) as sock:
            sock.bind((source, 0))
            sock.connect((addresses("late")[1], PORT))
            return ask(sock, "who is it?").server

    def everybody() -> set[str]:
        faithful, found = call(clients[0]), set()
        for number, each in enumerate(clients[1:]):
            found.add(call(each))
            if number % 8 == 0:
                assert call(clients[0]) == faithful
        return found

    assert inside(lab, "outside", everybody) == set(SERVERS)
    traffic.unharmed()
    lab.withdraw("late")
    lab.wait_gone("default/late")


def test_sockets(lab: Lab, traffic: Bystanders) -> None:
    """The node's own sockets with a service as peer: more than their maps hold, over time."""
    argv = [
        sys.executable,
        "-S",
        "-c",
        MANY_SOCKETS,
        addresses("steady")[0],
        str(PORT),
        str(SOCKETS),
    ]
    assert lab.exec("node1", argv, timeout=120, check=True).stdout == "done\n"
    for _ in range(3):
        traffic.unharmed()
