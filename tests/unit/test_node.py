"""Facts about the node: which addresses serve node ports, what is primary, where pods are."""

from __future__ import annotations

import pytest

from lbctl.addresses import format_address, parse_address, parse_prefix
from lbctl.errors import ConfigError
from lbctl.resolve.node import NodeFacts, NodeSettings, is_leaving, node_facts
from tests.support.k8s_objects import as_node, node

LOCAL = ["127.0.0.1", "::1", "192.168.0.2", "10.9.0.1", "fd00::2", "fd00:9::1", "fe80::1"]


def facts(settings: NodeSettings | None = None, *, internal: bool = True) -> NodeFacts:
    own = as_node(node(addresses=["192.168.0.2", "fd00::2"], zone="a")) if internal else None
    return node_facts("worker-1", own, [parse_address(a) for a in LOCAL], settings)


def served(found: NodeFacts) -> set[str]:
    return {format_address(a) for a in found.nodeport_addresses}


def test_facts_of_an_ordinary_node() -> None:
    found = facts()
    assert (found.name, found.zone) == ("worker-1", "a")
    assert found.primary4 == found.primary(4) == parse_address("192.168.0.2")
    assert found.primary6 == found.primary(6) == parse_address("fd00::2")
    assert {format_address(a) for a in found.addresses} == set(LOCAL) - {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, {"192.168.0.2", "fd00::2"}),
        ((), {"192.168.0.2", "fd00::2"}),
        (("primary",), {"192.168.0.2", "fd00::2"}),
        (("0.0.0.0/0", "::/0"), {"192.168.0.2", "10.9.0.1", "fd00::2", "fd00:9::1"}),
        (("10.0.0.0/8", "fd00:9::/64"), {"10.9.0.1", "fd00:9::1"}),
        (("10.0.0.0/8", "0.0.0.0/0", "fd00::/128"), {"192.168.0.2", "10.9.0.1"}),
        (("10.0.0.0/8",), {"10.9.0.1", "fd00::2", "fd00:9::1"}),  # no entry of a family: all
        (("127.0.0.0/8", "::1/128", "fe80::/10"), set()),
        (("all",), {"192.168.0.2", "10.9.0.1", "fd00::2", "fd00:9::1"}),
        (("localhost",), set()),
        (("primary", "localhost"), {"192.168.0.2", "fd00::2"}),
        (("primary", "10.0.0.0/8"), {"192.168.0.2", "10.9.0.1", "fd00::2"}),
    ],
)
def test_nodeport_addresses(listed: tuple[str, ...] | None, expected: set[str]) -> None:
    assert served(facts(NodeSettings(nodeport_addresses=listed))) == expected


@pytest.mark.parametrize(
    ("listed", "served_there"),
    [
        (None, False),
        (("primary",), False),
        (("all",), False),
        (("127.0.0.0/8", "::1/128"), False),
        (("localhost",), True),
        (("10.0.0.0/8", "localhost"), True),
    ],
)
def test_localhost_is_asked_for_by_name(listed: tuple[str, ...] | None, served_there: bool) -> None:
    found = facts(NodeSettings(nodeport_addresses=listed))
    assert found.localhost_node_ports is served_there


def test_bad_nodeport_addresses_name_the_entry() -> None:
    with pytest.raises(ConfigError, match=r"nodePortAddresses: '10\.0\.0\.1' is not a network"):
        facts(NodeSettings(nodeport_addresses=("10.0.0.1",)))


def test_no_node_object_yet() -> None:
    found = facts(internal=False)
    assert (found.zone, found.primary4, found.nodeport_addresses) == ("", None, ())
    assert parse_address("10.9.0.1") in found.addresses


def test_external_ip_where_there_is_no_internal_one() -> None:
    value = node(addresses=[])
    value["status"]["addresses"] = [{"type": "ExternalIP", "address": "8.8.8.8"}]
    found = node_facts("worker-1", as_node(value))
    assert found.primary4 == parse_address("8.8.8.8")
    assert found.addresses == ()  # often translated outside: the node does not have it


def test_primary_address_from_the_settings() -> None:
    found = facts(NodeSettings(primary_addresses=(parse_address("10.9.0.1"),)))
    assert found.primary4 == parse_address("10.9.0.1")
    assert found.primary6 == parse_address("fd00::2")
    assert served(found) == {"10.9.0.1", "fd00::2"}


def test_pod_ranges_from_the_node() -> None:
    value = node()
    value["spec"] = {"podCIDRs": ["10.1.2.0/24"]}
    given = NodeSettings(cluster_cidrs=(parse_prefix("10.0.0.0/8"),))
    assert node_facts("worker-1", as_node(value), (), given).cluster_cidrs == given.cluster_cidrs
    by_node = NodeSettings(pods_from_node_cidrs=True)
    (found,) = node_facts("worker-1", as_node(value), (), by_node).cluster_cidrs
    assert str(found) == "10.1.2.0/24"


def test_leaving() -> None:
    value = node()
    assert not is_leaving(None)
    assert not is_leaving(as_node(value))
    value["spec"] = {"taints": [{"key": "other", "effect": "NoSchedule"}]}
    assert not is_leaving(as_node(value))
    value["spec"]["taints"].append({"key": "ToBeDeletedByClusterAutoscaler", "effect": "x"})
    assert is_leaving(as_node(value))
    deleting = node()
    deleting["metadata"]["deletionTimestamp"] = "2025-01-01T00:00:00Z"
    assert is_leaving(as_node(deleting))
