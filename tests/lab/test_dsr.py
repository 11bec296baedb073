"""Answers straight back, with real sockets: a client outside calls node1, the endpoint is on node2.

The endpoint sees the client's own address, and nothing of what it answers passes node1.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.dsr import BACKEND, WAYS, flows, publish
from tests.lab.support.external import Exposed
from tests.lab.support.labs import (
    TARGET,
    TCP,
    TIMEOUT,
    UDP,
    Responder,
    ask,
    client,
    connected,
    counted,
    hear_back,
    listen,
)
from tests.lab.support.transfers import (
    NARROW,
    Exchange,
    content,
    echoed,
    flush_routes,
    learn_size,
    narrower,
    read,
    text_of,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

ECHO = Exposed("echo", 1)
BULK = Exposed("bulk", 2)
DEAF = Exposed("deaf", 3)
MODES = Exposed("modes", 4)
OWN = Exposed("own", 5)
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
KIND = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
CUT_ON_THE_WAY = (10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT (linux/in.h): without DF
# A doctor that waits a tenth of a second for each answer.
IMPATIENT = (
    "import lbctl.host.dsrtrial; lbctl.host.dsrtrial.WAIT = 0.1; "
    "from lbctl.cli.main import main; main()"
)
OVERHEAD = {"udp": (28, 48), "ipip": (20, 40)}


@pytest.fixture(scope="module", params=["udp", "ipip"])
def form(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def lab(form: str, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    options = AgentOptions(extra=("--dsr-encapsulation", form))
    made = make_lab(f"d-{form}", nodes=2, pods=2, options=options)
    for node in made.nodes:  # errors are what is tested, not how often a node sends them
        for limit in ("ipv4.icmp_ratelimit", "ipv6.icmp.ratelimit"):
            made.exec(node.name, ["sysctl", "-q", f"net.{limit}=0"], check=True)
    with Responder() as responder:
        responder.serve(made, [BACKEND, "pod4", "node2"])
        publish(made, ECHO)
        publish(made, BULK, target=TARGET + 1)
        publish(made, DEAF, target=TARGET + 9)
        publish(made, OWN, members=("node2",))
        yield made
    made.down()


@KIND
@FAMILY
@pytest.mark.parametrize("way", WAYS)
def test_the_endpoint_sees_the_client_and_answers_past_the_node(
    lab: Lab, way: str, family: int, kind: socket.SocketKind
) -> None:
    address, port = ECHO.where(lab, way, family)
    with connected(lab, "outside", address, kind, port=port) as sock:
        own = sock.getsockname()[1]
        for number in range(20):
            reply = ask(sock, f"line {number}")
            assert (reply.server, reply.client) == (BACKEND, lab.outside.addresses[family])
            assert reply.port == own
        (sent,) = flows(lab, "node1", own, (address, port), kind)
        (got,) = flows(lab, "node2", own, (address, port), kind)
    assert (sent.kind, sent.packets_out) == ("dsr", 0)
    assert got.kind == "service"
    # An acknowledgement that waited may come between the two looks.
    assert 20 <= sent.packets_in <= got.packets_in <= sent.packets_in + 1
    assert got.packets_out >= 20
    assert (sent.address, sent.backend) == (got.address, got.backend)


@FAMILY
@KIND
def test_a_process_of_the_node_as_endpoint(lab: Lab, family: int, kind: socket.SocketKind) -> None:
    for way in WAYS:
        address, port = OWN.where(lab, way, family)
        with connected(lab, "outside", address, kind, port=port) as sock:
            reply = ask(sock, "hello")
        assert (reply.server, reply.client) == ("node2", lab.outside.addresses[family])


@FAMILY
@KIND
@pytest.mark.parametrize("origin", ["pod1", "pod2", "pod4", "node2"])
def test_from_elsewhere(lab: Lab, origin: str, family: int, kind: socket.SocketKind) -> None:
    """Pods of this node, of the other one, the endpoint itself, the other node."""
    for way in WAYS:
        address, port = ECHO.where(lab, way, family)
        with connected(lab, origin, address, kind, port=port) as sock:
            assert [ask(sock, f"{n}").server for n in range(3)] == [BACKEND] * 3


@KIND
@FAMILY
def test_one_port_towards_all_addresses_at_once(
    lab: Lab, family: int, kind: socket.SocketKind
) -> None:
    """The endpoint's node keeps them apart, as its answers have to pass there."""
    with contextlib.ExitStack() as undo:
        talks = []
        for way in WAYS:
            sock = undo.enter_context(client(lab, "outside", family, kind, 45000 + family))
            sock.connect(ECHO.where(lab, way, family))
            talks.append(sock)
        for number in range(3):
            replies = [ask(sock, f"{number} of {n}") for n, sock in enumerate(talks)]
            assert {reply.server for reply in replies} == {BACKEND}
            assert len({reply.port for reply in replies}) == len(WAYS)


@FAMILY
@pytest.mark.parametrize("way", WAYS)
def test_a_closed_port_is_refused(lab: Lab, way: str, family: int) -> None:
    for kind in (TCP, UDP):
        with client(lab, "outside", family, kind) as sock, pytest.raises(ConnectionRefusedError):
            hear_back(sock, *DEAF.where(lab, way, family))


@FAMILY
def test_many_short_connections(lab: Lab, family: int) -> None:
    before = counted(lab, "node1", "forwarded")
    for number in range(1000):
        address, port = ECHO.where(lab, WAYS[number % 3], family)
        with connected(lab, "outside", address, TCP, port=port) as sock:
            assert ask(sock, "bye").server == BACKEND
    assert counted(lab, "node1", "forwarded") - before >= 1000
    for reason in ("dsr_unknown", "dsr_unrouted", "rewrite_failed", "internal"):
        assert [counted(lab, node.name, reason) for node in lab.nodes] == [0, 0]


# ── size ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def narrowed(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    where: str = request.param
    with narrower(lab, where, BACKEND, answering="node2"):
        yield where


@FAMILY
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("narrowed", NARROW, indirect=True)
@pytest.mark.usefixtures("narrowed")
def test_a_large_transfer_finds_its_size(lab: Lab, way: str, family: int) -> None:
    backend = lab.find(BACKEND).addresses[family]
    address, port = BULK.where(lab, way, family)
    before = counted(lab, "node1", "rewrite_failed")
    with listen(lab, BACKEND, backend, TARGET + 1, TCP) as server:
        exchange = Exchange(server)
        exchange.start()
        with connected(lab, "outside", address, TCP, port=port) as sock:
            sock.sendall(content("up"))
            got = read(sock)
        exchange.join(TIMEOUT)
    assert exchange.got == content("up")
    assert got == content("down")
    assert counted(lab, "node1", "rewrite_failed") == before


@FAMILY
def test_the_segment_size_leaves_room_for_the_outer_header(
    lab: Lab, form: str, family: int
) -> None:
    """So that nothing is lost to its size where all links are alike."""
    flush_routes(lab, ("outside", "node1", "node2", BACKEND))
    before = counted(lab, "node1", "dsr_too_big")
    backend = lab.find(BACKEND).addresses[family]
    headers = (20, 40)[family] + 20 + 12  # with time stamps
    with listen(lab, BACKEND, backend, TARGET + 1, TCP) as server:
        server.settimeout(TIMEOUT)
        address, port = BULK.where(lab, "ingress", family)
        with connected(lab, "outside", address, TCP, port=port) as sock:
            there, _ = server.accept()
            with there:
                size = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
                assert size == 1500 - headers - OVERHEAD[form][family]
                sock.sendall(content("up", 200_000))
                there.settimeout(TIMEOUT)
                assert read(there, 200_000) == content("up", 200_000)
    assert counted(lab, "node1", "dsr_too_big") == before


@FAMILY
@pytest.mark.parametrize("size", [1465, 2000, 9000])
@pytest.mark.parametrize("way", WAYS)
def test_datagrams_that_are_too_large_get_through_once_the_client_knows(
    lab: Lab, way: str, size: int, family: int
) -> None:
    flush_routes(lab, ("outside",))
    address, port = ECHO.where(lab, way, family)
    with connected(lab, "outside", address, UDP, port=port) as sock:
        learn_size(sock, size)
        for number in range(10, 15):
            reply = echoed(sock, text_of(number, size))
            assert (reply.server, reply.client) == (BACKEND, lab.outside.addresses[family])


@pytest.mark.parametrize("size", [1472, 4000])
@pytest.mark.parametrize("way", WAYS)
def test_datagrams_that_may_be_cut_get_there_at_once(lab: Lab, way: str, size: int) -> None:
    """Whoever has them cut on the way need not hear of their size, and loses none."""
    flush_routes(lab, ("outside",))
    address, port = ECHO.where(lab, way, 0)
    before = counted(lab, "node1", "dsr_too_big")
    with connected(lab, "outside", address, UDP, port=port) as sock:
        sock.setsockopt(socket.IPPROTO_IP, *CUT_ON_THE_WAY)
        for number in range(10):
            reply = echoed(sock, text_of(number, size))
            assert (reply.server, reply.client) == (BACKEND, lab.outside.addresses[0])
    assert counted(lab, "node1", "dsr_too_big") == before


# ── a live service's mode ─────────────────────────────────────────────────────────────────────────


def test_the_mode_changes_under_connections_that_go_on(lab: Lab) -> None:
    """Each keeps what it began with; datagrams, too."""
    with contextlib.ExitStack() as undo:
        talks: list[tuple[socket.socket, str, str]] = []
        for mode in ("snat", "dsr", "snat", "dsr"):
            publish(lab, MODES, mode)
            for family in (0, 1):
                for kind in (TCP, UDP):
                    for way in WAYS:
                        sock = undo.enter_context(client(lab, "outside", family, kind))
                        sock.connect(MODES.where(lab, way, family))
                        seen = lab.outside if mode == "dsr" else lab.node("node1")
                        talks.append((sock, seen.addresses[family], mode))
            for number, (sock, seen_as, began) in enumerate(talks):
                reply = ask(sock, f"{mode} {number}")
                assert (reply.server, reply.client) == (BACKEND, seen_as), began


@KIND
def test_endpoints_come_and_go(lab: Lab, kind: socket.SocketKind) -> None:
    publish(lab, MODES)
    with connected(lab, "outside", MODES.ingress(0), kind) as sock:
        assert ask(sock, "first").server == BACKEND
        publish(lab, MODES, members=("pod4",))
        reply = ask(sock, "second")
        assert reply.server == (BACKEND if kind == TCP else "pod4")
        with connected(lab, "outside", MODES.ingress(0), kind) as other:
            assert ask(other, "new").server == "pod4"


def test_agents_start_again_under_connections(lab: Lab) -> None:
    with contextlib.ExitStack() as undo:
        talks = []
        for family in (0, 1):
            for kind in (TCP, UDP):
                where = ECHO.where(lab, "ingress", family)
                talks.append(
                    undo.enter_context(connected(lab, "outside", where[0], kind, port=where[1]))
                )
        for step, node in enumerate(("node1", "node2")):
            before = [ask(sock, f"{step} before") for sock in talks]
            lab.restart_agent(node)
            lab.wait_ready([node])
            after = [ask(sock, f"{step} after") for sock in talks]
            assert [(r.server, r.port) for r in before] == [(r.server, r.port) for r in after]


# ── trying it ─────────────────────────────────────────────────────────────────────────────────────


def doctor(lab: Lab, node: str, *words: str) -> list[str]:
    return lab.command(node, lbctl_command("doctor", "--pin-dir", str(lab.pin_dir(node)), *words))


def listens(lab: Lab, node: str) -> bool:
    """Whether somebody has raw sockets for IP in IP, which doctor opens last."""
    _, *sockets = lab.exec(node, ["cat", "/proc/net/raw6"], check=True).stdout.splitlines()
    return bool(sockets)


@FAMILY
def test_doctor_tries_it_between_two_nodes(lab: Lab, family: int) -> None:
    free = ("192.0.2.250", "2001:db8:2::250")[family]
    ask_there = ("--dsr", lab.node("node2").addresses[family], "--service-address", free)
    argv = doctor(lab, "node2", "--dsr")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as there:
        try:
            assert there.stderr is not None
            assert "answering" in there.stderr.readline()
            wait_until(lambda: listens(lab, "node2"))
            asked = subprocess.run(
                doctor(lab, "node1", *ask_there, "-o", "json"), capture_output=True, text=True
            )
        finally:
            there.terminate()
    assert asked.returncode == 0, asked
    found = {row["name"]: row["ok"] for row in json.loads(asked.stdout)}
    tried = {name: ok for name, ok in found.items() if name.startswith(("DSR: UDP", "DSR: IP in"))}
    assert len(tried) == 4
    assert set(tried.values()) == {True}, asked.stdout


def test_doctor_says_that_nobody_answers(lab: Lab) -> None:
    words = ("--dsr", lab.node("node2").ipv4, "--service-address", "192.0.2.250")
    asked = lab.exec("node1", [sys.executable, "-c", IMPATIENT, "doctor", *words])
    assert asked.returncode == 5
    assert "no answer from 172.18.0.12 as 192.0.2.250" in " ".join(asked.stdout.split())


def test_doctor_looks_at_what_it_needs_where_a_service_has_it(lab: Lab) -> None:
    asked = subprocess.run(doctor(lab, "node1", "-o", "json"), capture_output=True, text=True)
    assert {"DSR: invalid packets", "DSR: rp_filter", "DSR: way back"} <= {
        row["name"] for row in json.loads(asked.stdout)
    }
