"""Taking a node over from kube-proxy's iptables rules under live connections."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from lbctl import status
from lbctl.lab import agents
from lbctl.lab.cluster import Lab
from tests.lab.support import kube_rules
from tests.lab.support.labs import (
    PORTS,
    TCP,
    UDP,
    Reply,
    Responder,
    addresses,
    ask,
    connected,
    counted,
    endpoint,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

CLIENT = "pod1"
START = 120.0  # seconds; the first start on a machine compiles the programs
BACKENDS = ("pod2", "pod3")
SERVICES = {"web": BACKENDS, "self": ("pod1",)}
# An agent that looks for kube-proxy's rules every second instead of every minute.
IMPATIENT = (
    "import lbctl.reconcile.housekeeping, lbctl.host.takeover; "
    "lbctl.host.takeover.CHECK_SECONDS = lbctl.reconcile.housekeeping.SWEEP_SECONDS = 0.5; "
    "from lbctl.cli.main import main; main()"
)


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lab(
    make_lab: Callable[..., Lab], variant: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    monkeypatch.setattr(
        agents, "lbctl_command", lambda *arguments: [sys.executable, "-c", IMPATIENT, *arguments]
    )
    made = make_lab(variant, nodes=2, pods=2, agent=False)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        kube_rules.install(made, "node1", variant, SERVICES)
        for name, backends in SERVICES.items():
            items = made.service(name, PORTS, [endpoint(made, backend) for backend in backends])
            made.apply(name, items)
        yield made
    made.down()


class Kept:
    """Connections that stay open and are asked again and again, from all threads at once."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, count: int) -> None:
        self.socks: list[socket.socket] = []
        self.first: list[Reply] = []
        for number in range(count):
            for family in (0, 1):
                address = addresses("web")[family]
                sock = stack.enter_context(connected(lab, CLIENT, address, TCP))
                self.socks.append(sock)
                self.first.append(ask(sock, f"opened {number}"))

    def check(self, text: str) -> None:
        """All are answered, each by the connection it always was."""
        for sock, first in zip(self.socks, self.first, strict=True):
            reply = ask(sock, text)
            assert (reply.connection, reply.server, reply.port) == (
                first.connection,
                first.server,
                first.port,
            )

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Ask all of them for the time of a block."""
        stop, problems = threading.Event(), []

        def work() -> None:
            number = 0
            while not stop.wait(0.005):
                number += 1
                try:
                    self.check(f"busy {number}")
                except (OSError, AssertionError) as error:
                    problems.append(repr(error))
                    return

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(30)
        assert problems == []


def open_and_ask(lab: Lab, service: str, number: int) -> set[str]:
    """Who answers so many new connections and datagrams of both families."""
    answered = set()
    for turn in range(number):
        for family in (0, 1):
            for kind in (TCP, UDP):
                with connected(lab, CLIENT, addresses(service)[family], kind) as sock:
                    answered.add(ask(sock, f"new {turn}").server)
    return answered


def taking_over(lab: Lab) -> bool | None:
    said = status.read(lab.pin_dir("node1"))
    return said.taking_over if said else None


def test_connections_survive_and_new_ones_are_ours(lab: Lab, variant: str) -> None:
    with contextlib.ExitStack() as stack:
        assert open_and_ask(lab, "web", 20) == set(BACKENDS)
        kept = Kept(lab, stack, 10)
        datagrams = stack.enter_context(connected(lab, CLIENT, addresses("web")[0], UDP))
        ask(datagrams, "before")
        assert kube_rules.hits(lab, "node1", variant) > 100
        with kept.busy():
            lab.start_agent("node1")
            lab.wait_ready(["node1"], timeout=START)
            lab.wait_attached(["node1"])
            before = kube_rules.hits(lab, "node1", variant)
            forwarded = counted(lab, "node1", "forwarded")
            assert open_and_ask(lab, "web", 20) == set(BACKENDS)
            assert open_and_ask(lab, "self", 5) == {"pod1"}
        assert taking_over(lab) is True
        assert kube_rules.hits(lab, "node1", variant) == before
        assert counted(lab, "node1", "forwarded") >= forwarded + 100
        assert counted(lab, "node1", "no_flow_passed") > 0
        assert counted(lab, "node1", "no_flow_reset") == 0
        kept.check("taken over")
        ask(datagrams, "after")
        ours = Kept(lab, stack, 3)
        with kept.busy():
            lab.restart_agent("node1")
            lab.wait_ready(["node1"], timeout=START)
        kept.check("restarted")

        kube_rules.remove(lab, "node1", variant)
        wait_until(lambda: taking_over(lab) is False)
        ours.check("without rules")
        ask(datagrams, "without rules")
        assert open_and_ask(lab, "web", 20) == set(BACKENDS)
        # Nobody owns these any more: they end at once, and do not hang.
        for sock in kept.socks:
            with pytest.raises(ConnectionResetError):
                ask(sock, "without rules")


def test_a_node_without_rules_resets_strangers_from_the_start(lab: Lab, variant: str) -> None:
    with contextlib.ExitStack() as stack:
        kept = Kept(lab, stack, 1)
        kube_rules.remove(lab, "node1", variant)
        lab.start_agent("node1")
        lab.wait_ready(["node1"], timeout=START)
        assert taking_over(lab) is False
        for sock in kept.socks:
            with pytest.raises(ConnectionResetError):
                ask(sock, "by nobody")
        assert open_and_ask(lab, "web", 10) == set(BACKENDS)
