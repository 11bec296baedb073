"""How a lab is laid out."""

from __future__ import annotations

import ipaddress

import msgspec
import pytest

from ebpf.errors import LbError
from lbctl.lab import network, topology
from lbctl.lab.topology import Cni, Topology


def test_pods_are_dealt_out_to_nodes_in_turn() -> None:
    plan = topology.plan("lab", nodes=2, pods=3, cni="route")

    assert [pod.node for pod in plan.pods] == ["node1", "node2"] * 3
    assert plan.pods[1].addresses == ("10.244.2.12", "fd00:10:244:2::12")
    assert [pod.name for pod in plan.pods_of(plan.nodes[0])] == ["pod1", "pod3", "pod5"]


def test_every_name_and_address_is_given_once() -> None:
    plan = topology.plan("lab", nodes=4, pods=50, cni="route")
    addresses = [address for member in plan.members for address in member.addresses]

    assert len(set(plan.namespaces)) == len(plan.namespaces) == 1 + 4 + 200 + 1
    assert len(set(addresses)) == len(addresses)


def test_pod_addresses_lie_in_the_range_that_is_routed_to_their_node() -> None:
    plan = topology.plan("lab", nodes=3, pods=60, cni="route")
    ranges = {node.name: node.pod_cidrs for node in plan.nodes}
    for pod in plan.pods:
        for address, cidr in zip(pod.addresses, ranges[pod.node], strict=True):
            assert ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


@pytest.mark.parametrize("name", ["", "Lab", "1lab", "a/b", "a.b", "../x", "x" * 41, "lab\n"])
def test_a_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    with pytest.raises(LbError, match="cannot name a lab") as caught:
        topology.plan(name, nodes=1, pods=1, cni="route")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("nodes", "pods"), [(0, 1), (65, 1), (1, -1), (2, 101)])
def test_sizes_that_do_not_fit_the_address_plan_are_refused(nodes: int, pods: int) -> None:
    with pytest.raises(LbError, match="nodes") as caught:
        topology.plan("lab", nodes, pods, "route")
    assert caught.value.exit_code == 2


def test_an_unknown_member_is_answered_with_those_there_are() -> None:
    plan = topology.plan("lab", nodes=1, pods=1, cni="route")
    with pytest.raises(LbError) as caught:
        plan.find("pod7")
    assert "node1, pod1, outside" in caught.value.hint


def test_a_topology_survives_being_written_down() -> None:
    plan = topology.plan("lab", nodes=2, pods=2, cni="bridge")
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Topology) == plan


@pytest.mark.parametrize("cni", ["route", "bridge"])
def test_veths_are_created_with_their_peer_in_its_namespace(cni: Cni) -> None:
    plan = topology.plan("lab", nodes=2, pods=2, cni=cni)
    commands = network.fabric_commands(plan)
    for node in plan.nodes:
        commands += network.node_commands(plan, node)
    pairs = [command for command in commands if "type veth" in command]

    assert len(pairs) == 2 + 1 + 4
    for member in plan.members:
        assert sum(command.endswith(f"netns {member.namespace}") for command in pairs) == 1


@pytest.mark.parametrize("cni", ["route", "bridge"])
def test_no_ipv6_address_waits_for_duplicate_detection(cni: Cni) -> None:
    plan = topology.plan("lab", nodes=2, pods=2, cni=cni)
    commands = [*network.fabric_commands(plan), *network.outside_commands(plan)]
    for node in plan.nodes:
        commands += network.node_commands(plan, node)
    for pod in plan.pods:
        commands += network.pod_commands(plan, pod)
    given = [
        command for command in commands if command.startswith("address add") and "::" in command
    ]

    assert len(given) >= len(plan.members)
    assert all(command.endswith("nodad") for command in given)


def test_a_pod_that_joins_gets_the_next_number() -> None:
    plan = topology.plan("lab", nodes=2, pods=1, cni="route")
    grown, pod = topology.with_pod(plan, plan.nodes[0])

    assert (pod.name, pod.node, pod.ipv4) == ("pod3", "node1", "10.244.1.13")
    assert grown.pods == (*plan.pods, pod)
    assert topology.without_pod(grown, pod) == plan
