"""Every algorithm with each way to other nodes, from outside; and all of that, weights and XDP
switched while connections begin and go on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import show
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support import drivers
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TCP, UDP, Responder, ask, connected, endpoint
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

SERVICE = Exposed("switched", 1)
BACKENDS = ("pod2", "pod4")  # both on node2; what comes from outside is node1's to send on
ALGORITHMS = ("random", "round-robin", "least-connections", "maglev", "source-hash")
MODES = ("snat", "dsr")
WAYS = ("ingress", "node1", "external")
PER_SECOND = 50  # connections of each kind, times --soak: 10,000 with 200
ON, OFF = AgentOptions(extra=("--xdp", "on")), AgentOptions()


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    made = make_lab("s", nodes=2, pods=2, options=ON)
    made.exec("outside", ["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"], check=True)
    drivers.let_transmit(made)
    for backend in BACKENDS:
        drivers.finish_checksums(made, backend)
    with Responder() as responder:
        responder.serve(made, BACKENDS)
        publish(made, SERVICE, "random", "snat")
        drivers.wait_state(made, "node1", "sends")
        yield made
    made.down()


def publish(
    lab: Lab,
    exposed: Exposed,
    algorithm: str,
    mode: str,
    weights: Mapping[str, str] | None = None,
) -> None:
    """Returns when both agents have it so."""
    weights = weights or {}
    objects: list[dict[str, Any]] = []
    for backend in BACKENDS:
        service, *slices = exposed.objects(lab, [endpoint(lab, backend)])
        service["metadata"]["annotations"] = {
            "lbctl/algorithm": algorithm,
            "lbctl/forwarding": mode,
        }
        for part in slices:
            part["metadata"]["name"] += f"-{backend}"
            part["metadata"]["annotations"] = {"lbctl/weight": weights.get(backend, "100")}
        objects += slices if objects else [service, *slices]
    lab.apply(exposed.name, objects)
    lab.wait_programmed(f"default/{exposed.name}", [endpoint(lab, backend) for backend in BACKENDS])
    wanted = algorithm, mode, sorted(int(weights.get(b, "100")) for b in BACKENDS)
    wait_until(lambda: all(shown(lab, node.name, exposed) == wanted for node in lab.nodes), 20)


def shown(lab: Lab, node: str, exposed: Exposed) -> tuple[str, str, list[int]]:
    with open_instance(lab.pin_dir(node)) as instance:
        row = show(instance, f"default/{exposed.name}")[0]
    return row.algorithm, row.forwarding, sorted(backend.weight for backend in row.backends)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_short_connections(
    lab: Lab, algorithm: str, mode: str, pytestconfig: pytest.Config
) -> None:
    """Of both families, towards each of the service's addresses; none fails. A service of its own:
    what DSR has not seen the end of, counts for least-connections for minutes."""
    number = 2 + len(MODES) * ALGORITHMS.index(algorithm) + MODES.index(mode)
    exposed = Exposed(f"{algorithm}-{mode}", number)
    publish(lab, exposed, algorithm, mode)
    for family in (0, 1):
        seen_as = (lab.outside if mode == "dsr" else lab.node("node1")).addresses[family]
        servers = set()
        for turn in range(int(PER_SECOND * pytestconfig.getoption("soak"))):
            address, port = exposed.where(lab, WAYS[turn % len(WAYS)], family)
            with connected(lab, "outside", address, TCP, port=port) as sock:
                reply = ask(sock, "bye")
            assert reply.client == seen_as
            servers.add(reply.server)
        assert servers <= set(BACKENDS)
        assert len(servers) == (1 if algorithm == "source-hash" else 2)


class Callers(threading.Thread):
    """Connections that begin all the time, and others that go on, with their backend."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(daemon=True)
        self._lab = lab
        self._ended = threading.Event()
        self.made = 0
        self.lost: list[str] = []

    def run(self) -> None:
        with contextlib.ExitStack() as stack:
            kept = []
            for family in (0, 1):
                for kind in (TCP, UDP):
                    address, port = SERVICE.where(self._lab, "ingress", family)
                    way = connected(self._lab, "outside", address, kind, port=port)
                    sock = stack.enter_context(way)
                    kept.append((sock, ask(sock, "first")))
            while not self._ended.is_set():
                for sock, first in kept:
                    with self._noted(f"{sock.type.name} that went on"):
                        reply = ask(sock, f"and on {self.made}")
                        assert (reply.server, reply.client) == (first.server, first.client)
                self._begin(self.made % 2)

    def _begin(self, family: int) -> None:
        address, port = SERVICE.where(self._lab, WAYS[self.made % len(WAYS)], family)
        with (
            self._noted("new one"),
            connected(self._lab, "outside", address, TCP, port=port) as sock,
        ):
            ask(sock, "bye")

    @contextlib.contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, AssertionError) as error:
            self.lost.append(f"{what}: {error!r}")
        self.made += 1

    def more(self, count: int) -> None:
        wanted = self.made + count
        wait_until(lambda: self.made >= wanted or not self.is_alive(), 30)

    def __enter__(self) -> Callers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(30)


def test_nothing_is_lost_while_everything_is_switched(lab: Lab) -> None:
    publish(lab, SERVICE, "random", "snat")
    with Callers(lab) as callers:
        callers.more(20)
        for step, options in enumerate((ON, OFF, ON)):
            if step:
                lab.stop_agent("node1")
                lab.start_agent("node1", options)
                lab.wait_ready(timeout=60)
                drivers.wait_state(lab, "node1", "sends" if options is ON else None)
            for number, algorithm in enumerate(ALGORITHMS):
                weights = {BACKENDS[(step + number) % 2]: "0"} if number % 2 else None
                publish(lab, SERVICE, algorithm, MODES[(step + number) % 2], weights)
                callers.more(10)
    assert callers.lost == []
    assert callers.made > 150
