"""Health-check node ports: counts, changes, and where they are listened for."""

from __future__ import annotations

import pytest

from lbctl.addresses import format_address, parse_address
from lbctl.config.bind import parse_bind
from lbctl.health.ports import HealthPorts, health_ports, listening_addresses
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeSettings, node_facts
from tests.support.balancers import KEY, NODE, balancer, objects
from tests.support.k8s_objects import Json, as_service, as_slice, endpoint, endpoint_slice


def test_local_ready_addresses_are_counted() -> None:
    known = objects(
        balancer(),
        endpoint("10.0.0.1"),
        endpoint("10.0.0.2", ready=True),
        endpoint("10.0.0.3", ready=False, serving=True, terminating=True),
        endpoint("10.0.1.1", "worker-2"),
        endpoint("10.0.1.2", None),
    )
    assert health_ports({KEY: known}, NODE) == {KEY: (32001, 2)}


def test_a_pod_with_both_families_counts_once() -> None:
    value = balancer(clusterIPs=["172.30.0.41", "fd00::41"])
    parts = [
        as_slice(endpoint_slice(endpoints=[endpoint("10.0.0.1"), endpoint("10.0.0.2")])),
        as_slice(
            endpoint_slice("six", endpoints=[endpoint("fd00::1")], address_type="IPv6"),
        ),
    ]
    known = ServiceObjects(as_service(value), tuple(parts))
    assert health_ports({KEY: known}, NODE) == {KEY: (32001, 2)}
    only_six = ServiceObjects(as_service(value), (parts[1],))
    assert health_ports({KEY: only_six}, NODE) == {KEY: (32001, 1)}


@pytest.mark.parametrize(
    "spec",
    [
        {"externalTrafficPolicy": "Cluster"},
        {"healthCheckNodePort": 0},
        {"type": "NodePort"},
        {"clusterIP": "None", "clusterIPs": ["None"]},
    ],
)
def test_other_services_have_none(spec: Json) -> None:
    assert health_ports({KEY: objects(balancer(**spec), endpoint("10.0.0.1"))}, NODE) == {}


def test_only_differences_are_reported() -> None:
    ports = HealthPorts()
    one, two = (objects(balancer(), *map(endpoint, ips)) for ips in (["10.0.0.1"], ["10.0.0.2"]))
    assert ports.take({KEY: one}, NODE)
    assert not ports.take({KEY: two}, NODE)  # another one, but as many
    assert not ports.take({ObjectKey("ns1", "other"): ServiceObjects(None)}, NODE)
    assert ports.ports == {KEY: (32001, 1)}
    assert ports.take({KEY: objects(balancer())}, NODE)
    assert ports.ports == {KEY: (32001, 0)}
    assert ports.take({KEY: ServiceObjects(None)}, NODE)
    assert ports.ports == {}


def test_a_port_that_two_claim_belongs_to_the_first_by_name() -> None:
    ports = HealthPorts()
    b = ObjectKey("ns1", "b")
    ports.take({b: objects(balancer("b")), KEY: objects(balancer())}, NODE)
    owners, problems = ports.owners()
    assert owners == {32001: b}
    assert problems == [
        "ns1/svc1: healthCheckNodePort 32001 is that of ns1/b already; give one of them another"
    ]


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, ["0.0.0.0", "::"]),
        (("primary",), ["192.168.0.2", "fd00::2"]),
        (("192.168.0.0/16", "fd00::/64"), ["192.168.0.2", "192.168.1.2", "fd00::2"]),
        (("192.168.0.0/24",), ["192.168.0.2", "::"]),
        (("0.0.0.0/0", "fd00::/64"), ["0.0.0.0", "fd00::2"]),
        (("203.0.113.0/24", "2001:db8::/64"), []),
    ],
)
def test_where_they_are(listed: tuple[str, ...] | None, expected: list[str]) -> None:
    own = [parse_address(a) for a in ("192.168.0.2", "192.168.1.2", "fd00::2", "127.0.0.1")]
    settings = NodeSettings(
        nodeport_addresses=listed,
        primary_addresses=(parse_address("192.168.0.2"), parse_address("fd00::2")),
    )
    facts = node_facts("worker-1", None, own, settings)
    found = listening_addresses(settings, facts)
    assert [format_address(a) for a in found] == expected


@pytest.mark.parametrize(
    ("text", "expected", "both"),
    [
        ("0.0.0.0:10256", "0.0.0.0:10256", False),
        ("[::]:1", "[::]:1", True),
        ("::", "[::]:10256", True),
        ("fd00::1", "[fd00::1]:10256", False),
        ("[fd00::1]", "[fd00::1]:10256", False),
        (" 10.0.0.1 ", "10.0.0.1:10256", False),
    ],
)
def test_places_to_listen(text: str, expected: str, both: bool) -> None:
    bind = parse_bind(text, 10256)
    assert (str(bind), bind.both) == (expected, both)


@pytest.mark.parametrize("text", ["", "node:80", "10.0.0.1:x", "10.0.0.1:0", "[::]:70000"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port"):
        parse_bind(text, 10256)
