"""Objects that cannot be read in part, and floods of them: the rest is served, little is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from lbctl.lab import objects, state
from lbctl.lab.cluster import Lab
from tests.lab.support.bystanders import STEADY, Bystanders, bystanders, steady_lab, targets
from tests.lab.support.faults import answers, frontends, lines, logged, service, wait_said
from tests.lab.support.labs import PORT, PORTS, addresses, endpoint

pytestmark = pytest.mark.lab

NODES = ("node1", "node2")
SERVERS = ("pod2", "pod3")
FLOOD = 900
MOST_LINES = 120  # in a status, whatever there is to be said
MOST_LOGGED = 60


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    with steady_lab(make_lab, "fo", SERVERS, nodes=2, pods=2) as made:
        yield made


@pytest.fixture(scope="module")
def traffic(lab: Lab) -> Iterator[Bystanders]:
    with bystanders(lab, targets(lab, SERVERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody_else_is_harmed(lab: Lab, traffic: Bystanders) -> Iterator[None]:
    yield
    for name in ("bad", "zoned"):
        lab.withdraw(name)
        lab.wait_gone(f"default/{name}", timeout=10)
    lab.apply("nodes", objects.nodes(lab.state.topology))
    traffic.unharmed()


def zoned(lab: Lab) -> list[dict[str, Any]]:
    """A service whose endpoints say which zone they are for: pod3 for node1's, pod2 for node2's."""
    found, *slices = service(lab, "zoned", SERVERS)
    for each in slices:
        for item, zone in zip(each["endpoints"], ("zone-b", "zone-a"), strict=True):
            item["hints"] = {"forZones": [{"name": zone}]}
    return [found, *slices]


@pytest.mark.parametrize(
    "bad",
    [
        {"type": "InternalIP", "address": "not-an-address"},
        {"type": "InternalIP", "address": None},
        {"type": ["InternalIP"], "address": 7},
        "172.18.0.11",
        None,
    ],
    ids=["no-address", "null", "wrong-types", "text", "nothing"],
)
def test_a_node_whose_third_address_is_none_keeps_its_zone(lab: Lab, bad: object) -> None:
    lab.apply("zoned", zoned(lab))
    nodes = objects.nodes(lab.state.topology)
    for item in nodes:
        item["status"]["addresses"].insert(2, bad)
    lab.apply("nodes", nodes)
    for node, member, expected in (("node1", "pod1", "pod3"), ("node2", "pod4", "pod2")):
        lab.wait_programmed("default/zoned", [endpoint(lab, expected)], [node], timeout=10)
        assert answers(lab, member, addresses("zoned")[0]) == {expected}
    # Its own address still is the place of node ports.
    assert answers(lab, "outside", lab.node("node1").ipv4, STEADY.node_port) <= set(SERVERS)


BAD_ENDPOINTS: dict[str, object] = {
    "no-addresses": {"conditions": {"ready": True}},
    "empty-addresses": {"addresses": [], "conditions": {"ready": True}},
    "no-address": {"addresses": ["10.244.1.1000"]},
    "null": None,
    "text": "10.244.1.9",
}


@pytest.mark.parametrize("what", BAD_ENDPOINTS)
def test_a_slice_with_one_bad_endpoint_keeps_the_others(lab: Lab, what: str) -> None:
    found, *slices = service(lab, "bad", SERVERS)
    for each in slices:
        each["endpoints"].insert(1, BAD_ENDPOINTS[what])
    lab.apply("bad", [found, *slices])
    lab.wait_programmed("default/bad", [endpoint(lab, name) for name in SERVERS], timeout=10)
    for address in addresses("bad"):
        assert answers(lab, "pod1", address, times=8) == set(SERVERS)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "quic", "port": 443, "protocol": "QUIC"},
        {"name": "far", "port": 70000, "protocol": "TCP"},
        {"name": "none", "port": 0, "protocol": "TCP"},
        {"name": "minus", "port": -1, "protocol": "UDP"},
        {"name": "text", "port": "http", "protocol": "TCP"},
        None,
    ],
    ids=["protocol", "beyond", "zero", "negative", "text", "null"],
)
def test_a_bad_port_costs_itself(lab: Lab, bad: object) -> None:
    found, *slices = service(lab, "bad", ["pod2"])
    found["spec"]["ports"].insert(0, bad)
    lab.apply("bad", [found, *slices])
    lab.wait_programmed("default/bad", [endpoint(lab, "pod2")], timeout=10)
    for address in addresses("bad"):
        assert answers(lab, "pod1", address) == {"pod2"}
    for node in NODES:
        assert {port for _, port in frontends(lab, node, "bad")} == {PORT}
        wait_said(lab, node, "default/bad")


def test_a_type_of_the_future_costs_no_cluster_ip(lab: Lab) -> None:
    found, *slices = service(lab, "bad", ["pod2"], spec={"type": "QuantumBalancer"})
    lab.apply("bad", [found, *slices])
    lab.wait_programmed("default/bad", [endpoint(lab, "pod2")], timeout=10)
    assert answers(lab, "pod1", addresses("bad")[1]) == {"pod2"}


def test_hundreds_of_bad_ports_are_one_line(lab: Lab) -> None:
    before = {node: logged(lab, node, "default/bad") for node in NODES}
    found, *slices = service(lab, "bad", ["pod2"], PORTS)
    found["spec"]["ports"] += [
        {"name": f"p{i}", "port": 70_000 + i, "protocol": "TCP"} for i in range(FLOOD)
    ]
    lab.apply("bad", [found, *slices])
    lab.wait_programmed("default/bad", [endpoint(lab, "pod2")], timeout=10)
    for node in NODES:
        wait_said(lab, node, "default/bad")
        assert len(lines(lab, node, "default/bad")) == 1
        assert logged(lab, node, "default/bad") - before[node] <= 3
    assert answers(lab, "pod1", addresses("bad")[0]) == {"pod2"}


def test_hundreds_of_bad_objects_are_told_within_bounds(lab: Lab, traffic: Bystanders) -> None:
    """Each lacks what makes it a service; a good one among them is served."""
    before = {node: logged(lab, node, "\n") for node in NODES}
    flood = []
    for i in range(FLOOD):
        [item, *_] = service(
            lab, f"broken-{i}", [], PORTS, addresses=(f"10.96.{i >> 8}.{i & 255}",)
        )
        item["spec"]["ports"] = [{"name": "p", "port": 70_000, "protocol": "TCP"}]
        flood.append(item)
    lab.apply("bad", [*flood[:450], *service(lab, "bad", ["pod2"]), *flood[450:]])
    lab.wait_programmed("default/bad", [endpoint(lab, "pod2")], timeout=20)
    assert answers(lab, "pod1", addresses("bad")[0]) == {"pod2"}
    for node in NODES:
        wait_said(lab, node, "broken-")
        assert len(lines(lab, node)) <= MOST_LINES
        assert logged(lab, node, "\n") - before[node] <= MOST_LOGGED
    traffic.unharmed()


@pytest.mark.parametrize("reverse", [False, True], ids=["last", "first"])
def test_deep_nesting_ends_no_agent(lab: Lab, reverse: bool) -> None:
    """5,000 levels in one object of a file, beside a good one."""
    good = service(lab, "bad", ["pod3"])
    deep = '{"apiVersion":"v1","kind":"Service","metadata":{"name":"deep","namespace":"default",'
    deep += '"managedFields":' + "[" * 5000 + "]" * 5000 + '},"spec":{"ports":[]}}'
    parts = [msgspec.json.encode(item).decode() for item in good]
    parts = [deep, *parts] if reverse else [*parts, deep]
    content = '{"apiVersion":"v1","kind":"List","items":[' + ",".join(parts) + "]}"
    pids = {node: lab.agent(node) for node in NODES}
    state.write_atomically(lab.paths.manifests / "bad.json", content.encode())
    lab.wait_programmed("default/bad", [endpoint(lab, "pod3")], timeout=15)
    assert answers(lab, "pod1", addresses("bad")[0]) == {"pod3"}
    for node in NODES:
        known = lab.agent(node)
        assert known == pids[node]
        assert known is not None
        assert known.running
