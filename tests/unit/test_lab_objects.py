"""The Kubernetes objects a lab makes."""

from __future__ import annotations

import json

from lbctl.lab import objects, topology
from lbctl.lab.objects import Endpoint, Port

PLAN = topology.plan("lab", nodes=2, pods=2, cni="route")


def test_a_service_has_a_slice_per_family_with_its_endpoints() -> None:
    first, second = PLAN.pods[:2]
    service, ipv4, ipv6 = objects.service(
        "web", [Port(80, target=8080, name="http")], [first, Endpoint(second, ready=False)]
    )

    assert service["spec"]["clusterIPs"] == list(objects.cluster_ips("default", "web"))
    assert service["spec"]["ports"] == [
        {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}
    ]
    for family, found in enumerate((ipv4, ipv6)):
        assert found["metadata"]["labels"] == {"kubernetes.io/service-name": "web"}
        assert found["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]
        assert [one["addresses"] for one in found["endpoints"]] == [
            [first.addresses[family]],
            [second.addresses[family]],
        ]
        assert [one["conditions"]["ready"] for one in found["endpoints"]] == [True, False]
        assert [one["nodeName"] for one in found["endpoints"]] == ["node1", "node2"]


def test_a_service_of_one_family_has_one_slice() -> None:
    made = objects.service("web", [Port(80)], [], addresses=("10.96.0.9",))
    assert [one["kind"] for one in made] == ["Service", "EndpointSlice"]
    assert made[0]["spec"]["ipFamilies"] == ["IPv4"]


def test_spec_adds_and_replaces_fields() -> None:
    made = objects.service("web", [Port(80)], [], spec={"type": "NodePort"})[0]
    assert made["spec"]["type"] == "NodePort"
    assert made["spec"]["clusterIP"].startswith("10.96.")


def test_cluster_addresses_lie_in_the_service_ranges_and_differ() -> None:
    import ipaddress

    ranges = [ipaddress.ip_network(cidr) for cidr in topology.SERVICE_CIDRS]
    pairs = {objects.cluster_ips("default", f"service-{number}") for number in range(50)}
    assert len(pairs) == 50
    for pair in pairs:
        for address, cidr in zip(pair, ranges, strict=True):
            assert ipaddress.ip_address(address) in cidr


def test_nodes_carry_what_agents_ask_for() -> None:
    node = objects.nodes(PLAN)[1]
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-b"
    internal = [
        one["address"] for one in node["status"]["addresses"] if one["type"] == "InternalIP"
    ]
    assert tuple(internal) == PLAN.nodes[1].addresses


def test_a_manifest_file_is_one_list() -> None:
    listed = json.loads(objects.as_list(objects.nodes(PLAN)))
    assert listed["kind"] == "List"
    assert [item["kind"] for item in listed["items"]] == ["Node", "Node"]
