"""Tables grow under traffic: nothing is lost, whoever is killed meanwhile; counts stay exact."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ebpf.instance import Instance
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import list_flows
from lbctl.inspect.names import all_names
from lbctl.inspect.opened import open_instance
from lbctl.lab.cluster import Lab
from lbctl.lab.state import AgentOptions
from tests.lab.support.labs import (
    PORT,
    PORTS,
    TCP,
    Responder,
    addresses,
    ask,
    connected,
    endpoint,
    inside,
    new_socket,
    publish,
)
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

numbers = itertools.count()
SERVER = "pod2"
BOUND = 60.0  # programs are loaded three times, beside others
SMALL, LARGE = AgentOptions(flows=128), AgentOptions(flows=8192)
FIRST_CELLS = 344  # for 128 flows
# Connections of each client, of two cells: no more than its share of the small table, and all of
# them together more than half of it.
FEW, MANY = 5, 15
HASHED = 5  # services of four ports: tables of 1,024 places, of which there are 16 at first


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """With room for few flows, and from now on for more."""
    made = make_lab(f"gr{next(numbers)}", nodes=1, pods=8, options=SMALL)
    with Responder() as responder:
        responder.serve(made, [pod.name for pod in made.pods])
        publish(made, {"web": [SERVER]})
        made.stop_agent("node1")
        made.start_agent("node1", LARGE)
        made.wait_ready()
        yield made
    made.down()


@contextlib.contextmanager
def opened(lab: Lab) -> Iterator[Instance]:
    with open_instance(lab.pin_dir("node1")) as found:
        yield found


def open_more(lab: Lab, stack: contextlib.ExitStack, each: int) -> list[socket.socket]:
    """Connections of each client to the service, that have carried something."""

    def call() -> list[socket.socket]:
        socks = []
        for _ in range(each):
            sock = stack.enter_context(new_socket(0, TCP))
            sock.connect((addresses("web")[0], PORT))
            ask(sock, "hello")
            socks.append(sock)
        return socks

    clients = [pod.name for pod in lab.pods if pod.name != SERVER]
    return [sock for name in clients for sock in inside(lab, name, call)]


def grows(lab: Lab) -> bool:
    """Whether it has begun."""
    with opened(lab) as instance:
        return instance.flow_tables[0].phase != 0


def has_grown(lab: Lab) -> bool:
    """Whether the table is larger, and in one piece."""
    with opened(lab) as instance:
        table = instance.flow_tables[0]
        return table.rooms().cells > FIRST_CELLS and len(table.banks) == 1


def live(lab: Lab) -> tuple[int, int, int]:
    """Open connections: as listed, as counted for the service, and for the backend."""
    with opened(lab) as instance:
        states = [
            row.state for row in list_flows(instance, FlowFilter(protocol=socket.IPPROTO_TCP))
        ]
        counted = instance.service_counters.records["live"].sum()
        return states.count("established"), int(counted), int(instance.backend_live.records.sum())


@pytest.mark.parametrize("kills", [(), (0.5, 1.0, 2.0, 4.0)], ids=["undisturbed", "killed"])
def test_flows_outgrow_their_table(lab: Lab, kills: tuple[float, ...]) -> None:
    assert not has_grown(lab)
    with contextlib.ExitStack() as stack:
        socks = open_more(lab, stack, FEW)
        assert live(lab) == (len(socks),) * 3
        socks += open_more(lab, stack, MANY - FEW)
        wait_until(lambda: grows(lab), BOUND)
        for seconds in kills:
            time.sleep(seconds)
            lab.restart_agent("node1", signal.SIGKILL)
            assert {ask(sock, "still here").server for sock in socks} == {SERVER}
        wait_until(lambda: has_grown(lab), BOUND)
        assert {ask(sock, "still here").server for sock in socks} == {SERVER}
        socks += open_more(lab, stack, MANY)
        assert live(lab) == (len(socks),) * 3
        with opened(lab) as instance:
            assert instance.flow_tables[0].refused() == 0
    wait_until(lambda: live(lab) == (0, 0, 0), BOUND)


def test_every_service_by_hash_has_its_table(lab: Lab) -> None:
    """More services than the maps begin with tables for: those grow, and all nodes go on choosing
    alike."""
    with opened(lab) as instance:
        first = instance.hash_tables.max_entries
    names = [f"hashed{number}" for number in range(HASHED)]
    for name in names:
        service, *slices = lab.service(name, PORTS, [endpoint(lab, SERVER)])
        service["metadata"]["annotations"] = {"lbctl/algorithm": "maglev"}
        lab.apply(name, [service, *slices])
    for name in names:
        lab.wait_programmed(f"default/{name}", [endpoint(lab, SERVER)])
    wait_until(lambda: without_table(lab) == [], BOUND, lambda: f"{without_table(lab)} have none")
    with opened(lab) as instance:
        assert instance.hash_tables.max_entries > first
    for name in names:
        with connected(lab, "pod1", addresses(name)[0], TCP) as sock:
            assert ask(sock, "hello").server == SERVER


def without_table(lab: Lab) -> list[str]:
    """Service ports that are to choose by a table and have none."""
    with opened(lab) as instance:
        records = instance.services.records
        return [
            port.text
            for number, port in all_names(instance.names).items()
            if port.service.startswith("hashed") and not records["cluster_table"][number]
        ]
