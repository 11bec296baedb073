"""A service that asks for more than there is room for costs itself its place, and nobody else's."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import JsonObject, Port
from lbctl.lab.state import AgentOptions
from tests.lab.support.bystanders import Bystanders, bystanders, steady_lab, targets
from tests.lab.support.faults import (
    Served,
    answers,
    fresh_agent,
    lines,
    logged,
    served,
    service,
    wait_said,
    wait_silent,
)
from tests.lab.support.labs import TARGET, addresses, publish
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

NODES = ("node1", "node2")
SERVERS = ("pod2", "pod3")
SMALL = AgentOptions(services=256, endpoints=1024, flows=1024)
GREEDY = "aaa-greedy"  # before all others by name
LOGGED = 12  # lines about one object, however large it is
FLAG = re.compile(r"--(services|endpoints)\b")


def many_source_ranges(lab: Lab) -> list[JsonObject]:
    """660 ranges for each of 100 ports: 66,000 entries."""
    ranges = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(330)]
    ranges += [f"2001:db8:{i:x}::/48" for i in range(1, 331)]
    ports = [Port(1000 + i, TARGET, f"p{i}") for i in range(100)]
    spec = {"type": "LoadBalancer", "loadBalancerSourceRanges": ranges}
    ingress = ("192.0.2.50", "2001:db8:2::50")
    return service(lab, GREEDY, ["pod1"], ports, spec, ingress=ingress)


def many_ports(lab: Lab) -> list[JsonObject]:
    ports = [Port(1000 + i, TARGET, f"p{i}") for i in range(5000)]
    return service(lab, GREEDY, ["pod1"], ports)


def many_endpoints(lab: Lab) -> list[JsonObject]:
    """35 slices of a thousand."""
    found, empty, *_ = service(lab, GREEDY, [], [Port(80, TARGET, "tcp")])
    first = int(ipaddress.IPv4Address("10.244.64.0"))
    slices = []
    for number in range(35):
        block = range(first + 1000 * number, first + 1000 * (number + 1))
        endpoints = [
            {"addresses": [str(ipaddress.IPv4Address(address))], "conditions": {"ready": True}}
            for address in block
        ]
        metadata = {**empty["metadata"], "name": f"{GREEDY}-{number}"}
        slices.append({**empty, "metadata": metadata, "endpoints": endpoints})
    return [found, *slices]


WISHES: dict[str, Callable[[Lab], list[JsonObject]]] = {
    "source-ranges": many_source_ranges,
    "ports": many_ports,
    "endpoints": many_endpoints,
}


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with steady_lab(make_lab, "fs", SERVERS, nodes=2, pods=2, options=SMALL) as made:
        yield made


@pytest.fixture
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


@pytest.fixture(params=WISHES)
def greedy(request: pytest.FixtureRequest, lab: Lab) -> Iterator[list[JsonObject]]:
    """The objects of a service that is too large; it is gone after the test."""
    yield WISHES[request.param](lab)
    lab.withdraw(GREEDY)
    lab.withdraw("small")
    for node in NODES:
        wait_silent(lab, node, GREEDY)
        lab.wait_gone(f"default/{GREEDY}", [node])
        lab.wait_gone("default/small", [node])


def test_it_costs_itself_its_place_and_others_change_at_once(
    lab: Lab, traffic: Bystanders, greedy: list[JsonObject]
) -> None:
    before = {node: logged(lab, node, GREEDY) for node in NODES}
    lab.apply(GREEDY, greedy)
    for node in NODES:
        wait_said(lab, node, GREEDY)
    for member in ("pod2", "pod3"):
        publish(lab, {"small": [member]})
        for family in (0, 1):
            assert answers(lab, "pod1", addresses("small")[family]) == {member}
    traffic.unharmed()
    for node in NODES:
        [line] = lines(lab, node, GREEDY)  # one for an object, not one for each of its ports
        assert FLAG.search(line), line
        assert logged(lab, node, GREEDY) - before[node] <= LOGGED


def test_every_node_and_every_restart_decides_the_same(lab: Lab, greedy: list[JsonObject]) -> None:
    """node1 knew the others first, node2 learns everything in one moment, the large one first by
    name."""
    lab.stop_agent("node2")
    publish(lab, {"small": ["pod2"]}, nodes=["node1"])
    lab.apply(GREEDY, greedy)
    wait_said(lab, "node1", GREEDY)
    fresh_agent(lab, "node2")
    wait_said(lab, "node2", GREEDY)
    for node in NODES:
        assert {name.split("/")[1].split(":")[0] for name in served(lab, node)} >= {
            "steady",
            "small",
        }
    wait_until(
        lambda: served(lab, "node1") == served(lab, "node2"),
        why=lambda: f"{len(served(lab, 'node1'))} and {len(served(lab, 'node2'))} ports",
    )
    first = served(lab, "node1")
    fresh_agent(lab, "node1")
    wait_said(lab, "node1", GREEDY)
    wait_until(
        lambda: served(lab, "node1") == first,
        why=lambda: f"{len(served(lab, 'node1'))} ports, {len(first)} before the restart",
    )


def serves(lab: Lab, node: str, what: Served) -> bool:
    return served(lab, node) == what


def differing(lab: Lab, node: str, what: Served) -> str:
    return f"{sorted(served(lab, node).keys() ^ what.keys())} differ"


def test_a_restart_beside_it_loses_nothing(
    lab: Lab, traffic: Bystanders, greedy: list[JsonObject]
) -> None:
    publish(lab, {"small": ["pod2"]})
    lab.apply(GREEDY, greedy)
    for node in NODES:
        wait_said(lab, node, GREEDY)
    wait_until(  # that nobody is about to give way any more
        lambda: served(lab, "node1") == served(lab, "node2"),
        why=lambda: f"{len(served(lab, 'node1'))} and {len(served(lab, 'node2'))} ports",
    )
    for node in NODES:
        before = served(lab, node)
        lab.restart_agent(node)
        traffic.unharmed()
        publish(lab, {"small": ["pod2"]}, nodes=[node])
        wait_until(partial(serves, lab, node, before), why=partial(differing, lab, node, before))
