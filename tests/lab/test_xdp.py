"""XDP on a node's uplink, with real sockets: from outside to a pod of another node and back."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from ebpf.kernel import libbpf
from lbctl.lab.agents import lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from lbctl.verify import attached
from tests.lab.support import drivers
from tests.lab.support.dsr import BACKEND, WAYS, publish
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TARGET, TCP, TIMEOUT, UDP, Responder, ask, client, listen
from tests.lab.support.transfers import Exchange, content, read
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

ECHO = Exposed("echo", 1)
BULK = Exposed("bulk", 2)
WHOLE = Exposed("whole", 3)
ON = AgentOptions(extra=("--xdp", "on"))
AUTO = AgentOptions(extra=("--xdp", "auto"))
OFF = AgentOptions()
FAMILY = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
KIND = pytest.mark.parametrize("kind", [TCP, UDP], ids=["tcp", "udp"])
ROUNDS = 20


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("xdp", nodes=2, pods=1, options=ON)
    drivers.let_transmit(made)
    drivers.finish_checksums(made, BACKEND)
    with Responder() as responder:
        responder.serve(made, [BACKEND])
        ECHO.publish(made, [BACKEND])
        BULK.publish(made, [BACKEND], target=TARGET + 1)
        drivers.wait_state(made, "node1", "sends")
        yield made
    made.down()


@contextlib.contextmanager
def conversation(lab: Lab, family: int, kind: socket.SocketKind) -> Iterator[socket.socket]:
    with client(lab, "outside", family, kind) as sock:
        sock.connect(ECHO.where(lab, "node1", family))
        for number in range(3):  # both ends' next hops are known after that
            ask(sock, f"first {number}")
        yield sock


def restart(lab: Lab, options: AgentOptions, state: str | None) -> None:
    """Another agent on node1, and what it makes of the uplink."""
    lab.stop_agent("node1")
    lab.start_agent("node1", options)
    lab.wait_ready(timeout=60)
    drivers.wait_state(lab, "node1", state)


@FAMILY
@KIND
def test_both_directions_pass_the_stack_by(lab: Lab, family: int, kind: socket.SocketKind) -> None:
    with conversation(lab, family, kind) as sock:
        before = drivers.sent_on(lab, "node1")
        for number in range(ROUNDS):
            assert ask(sock, f"hello {number}").server == BACKEND
        assert drivers.sent_on(lab, "node1") - before >= 2 * ROUNDS


@FAMILY
@KIND
def test_outer_headers_are_put_on_at_the_driver(
    lab: Lab, family: int, kind: socket.SocketKind
) -> None:
    """Of flows whose answers go straight back."""
    publish(lab, WHOLE)
    for way in WAYS:
        with client(lab, "outside", family, kind) as sock:
            sock.connect(WHOLE.where(lab, way, family))
            for number in range(3):
                ask(sock, f"first {number}")
            before = drivers.sent_on(lab, "node1")
            for number in range(ROUNDS):
                reply = ask(sock, f"hello {number}")
                assert (reply.server, reply.client) == (BACKEND, lab.outside.addresses[family])
            assert drivers.sent_on(lab, "node1") - before >= ROUNDS


@FAMILY
@KIND
def test_unfinished_checksums_are_left_to_the_stack(
    lab: Lab, family: int, kind: socket.SocketKind
) -> None:
    """A pod's veth leaves them to a device that never comes: what answers goes by TC."""
    drivers.finish_checksums(lab, BACKEND, on=False)
    try:
        with conversation(lab, family, kind) as sock:
            before = drivers.sent_on(lab, "node1")
            for number in range(ROUNDS):
                assert ask(sock, f"hello {number}").server == BACKEND
            sent = drivers.sent_on(lab, "node1") - before
            assert ROUNDS <= sent < 2 * ROUNDS
    finally:
        drivers.finish_checksums(lab, BACKEND)


@FAMILY
def test_much_data_arrives_whole(lab: Lab, family: int) -> None:
    address = lab.find(BACKEND).addresses[family]
    with listen(lab, BACKEND, address, TARGET + 1, TCP) as server:
        exchange = Exchange(server)
        exchange.start()
        before = drivers.sent_on(lab, "node1")
        with client(lab, "outside", family, TCP) as sock:
            sock.connect(BULK.where(lab, "node1", family))
            sock.sendall(content("up"))
            got = read(sock)
        exchange.join(TIMEOUT)
    assert got == content("down")
    assert exchange.got == content("up")
    assert drivers.sent_on(lab, "node1") - before > 1000


class Talker(threading.Thread):
    """Asks without end, over one connection and by datagrams, in both families; every question is
    answered."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self._ended = threading.Event()
        self.asked = 0
        self.error: Exception | None = None

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            socks = [
                stack.enter_context(conversation(self._lab, family, kind))
                for family in (0, 1)
                for kind in (TCP, UDP)
            ]
            try:
                while not self._ended.is_set():
                    for sock in socks:
                        ask(sock, f"number {self.asked}")
                        self.asked += 1
            except (OSError, AssertionError) as error:
                self.error = error

    def __enter__(self) -> Talker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(TIMEOUT * 2)


def test_it_is_switched_and_agents_die_under_traffic(lab: Lab) -> None:
    """No question goes without an answer, datagrams included."""
    with Talker(lab) as talker:
        steps: list[Callable[[], None]] = [
            lambda: restart(lab, OFF, None),
            lambda: restart(lab, ON, "sends"),
            lambda: lab.stop_agent("node1", signal.SIGKILL),
        ]
        for step in steps:
            before = talker.asked
            step()
            assert talker.error is None
            assert talker.asked > before
        sent = drivers.sent_on(lab, "node1")
        with conversation(lab, 0, TCP) as sock:  # without an agent
            for number in range(ROUNDS):
                ask(sock, f"hello {number}")
        assert drivers.sent_on(lab, "node1") - sent >= 2 * ROUNDS
        lab.start_agent("node1", ON)
        lab.wait_ready(timeout=60)
        drivers.wait_state(lab, "node1", "sends")
    assert talker.error is None


def test_a_device_that_cannot_transmit_is_not_sent_to(lab: Lab) -> None:
    """Its driver would lose what it is given; the agent notices, and notices the end of it."""
    drivers.let_transmit(lab, on=False)
    try:
        drivers.wait_state(lab, "node1", "receives")
        _, why = drivers.drivers(lab, "node1")["eth0"]
        assert "generic-receive-offload" in why
        with conversation(lab, 0, TCP) as sock:
            before = drivers.sent_on(lab, "node1")
            ask(sock, "hello")
            assert drivers.sent_on(lab, "node1") == before
    finally:
        drivers.let_transmit(lab)
    drivers.wait_state(lab, "node1", "sends")


def sent_of(lab: Lab, sock: socket.socket) -> int:
    """Frames that the driver sends on of as many questions and answers as there are rounds."""
    before = drivers.sent_on(lab, "node1")
    for number in range(ROUNDS):
        ask(sock, f"hello {number}")
    return drivers.sent_on(lab, "node1") - before


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_rules_of_others_have_a_say_by_auto_alone(lab: Lab, mode: str) -> None:
    """They come and go under a connection."""
    restart(lab, AUTO if mode == "auto" else ON, "sends")
    chain = "{ type filter hook forward priority 0; }"
    with conversation(lab, 0, TCP) as sock:
        wait_until(lambda: sent_of(lab, sock) >= 2 * ROUNDS, 10)
        assert drivers.others(lab, "node1") == []
        for command in ("add table ip t", f"add chain ip t c {chain}", "add rule ip t c counter"):
            lab.exec("node1", ["nft", command], check=True)
        try:
            wait_until(lambda: drivers.others(lab, "node1") != [], 10)
            assert "chain c of ip t has rules" in drivers.others(lab, "node1")[0]
            sent = sent_of(lab, sock)  # acknowledgements may come besides
            assert sent == 0 if mode == "auto" else sent >= 2 * ROUNDS
        finally:
            lab.exec("node1", ["nft", "delete table ip t"], check=True)
        wait_until(lambda: sent_of(lab, sock) >= 2 * ROUNDS, 10)
        wait_until(lambda: drivers.others(lab, "node1") == [], 10)


def test_verify_sees_a_link_that_somebody_detached(lab: Lab) -> None:
    """Without an agent, which would attach again at once."""
    lab.stop_agent("node1")
    pins = lab.pin_dir("node1")
    assert not list(attached.drivers(pins))
    libbpf.link_detach(str(pins / "links" / "eth0-xdp"))
    (found,) = attached.drivers(pins)
    assert "detached" in str(found)
    lab.start_agent("node1", ON)
    lab.wait_ready(timeout=60)
    drivers.wait_state(lab, "node1", "sends")
    assert not list(attached.drivers(pins))


def test_another_program_is_left_alone_and_named(lab: Lab) -> None:
    restart(lab, OFF, None)
    other = "import sys, time; from ebpf.kernel import libbpf, syscall;"
    code = bytes.fromhex("b7000000020000009500000000000000")  # returns XDP_PASS
    other += f"fd = libbpf.prog_load(6, 'stranger', bytes.fromhex('{code.hex()}'), 37);"
    other += "import socket; link = syscall.xdp_link(fd, socket.if_nametoindex('eth0'));"
    other += "print('there', flush=True); time.sleep(600)"
    child = lab.popen("node1", [sys.executable, "-c", other], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "there\n"
        restart(lab, ON, "tc")
        _, why = drivers.drivers(lab, "node1")["eth0"]
        assert "another XDP program, stranger" in why
        with conversation(lab, 0, TCP) as sock:
            ask(sock, "hello")
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


def test_removal_takes_it_away(lab: Lab) -> None:
    restart(lab, ON, "sends")
    lab.stop_agent("node1")
    command = lbctl_command("cleanup", "--yes", "--pin-dir", str(lab.pin_dir("node1")))
    lab.exec("node1", command, check=True)
    shown = lab.exec("node1", ["ip", "-d", "link", "show", "dev", "eth0"], check=True).stdout
    assert "prog/xdp" not in shown
