"""Which interfaces are uplinks and which are pods'."""

from __future__ import annotations

import ipaddress

from ebpf.kernel.netlink import Address, Link, Route
from lbctl.agent.uplinks import pod_interfaces, uplinks


def link(index: int, name: str, kind: str = "", peer_netns: int | None = None) -> Link:
    return Link(index, name, kind, "up", True, name == "lo", 0, 0, peer_netns)


def address(index: int, text: str, scope: int = 0) -> Address:
    ip, _, prefix = text.partition("/")
    return Address(index, ipaddress.ip_address(ip), int(prefix or 32), scope)


LO = link(1, "lo")
ETH0 = link(2, "eth0")
STORAGE = link(3, "eth1")
BRIDGE = link(4, "cni0", "bridge")
VXLAN = link(5, "flannel.1", "vxlan")
POD = link(6, "veth1", "veth", 0)
LOCAL_VETH = link(7, "veth2", "veth")
DNS_CACHE = link(8, "nodelocaldns", "dummy")
ALL = (LO, ETH0, STORAGE, BRIDGE, VXLAN, POD, LOCAL_VETH, DNS_CACHE)
ADDRESSES = (
    address(1, "127.0.0.1/8", 254),
    address(2, "192.0.2.10/24"),
    address(3, "198.51.100.1/24"),
    address(4, "10.244.0.1/24"),
    address(5, "10.244.0.0/32"),
    address(6, "169.254.1.1/32", 253),
    address(8, "169.254.20.10/32"),
)


def test_routes_and_addresses_make_uplinks() -> None:
    assert uplinks(ALL, (Route(2, 4),), ADDRESSES) == {2, 3, 5}


def test_a_veth_with_a_default_route_is_an_uplink() -> None:
    node = link(2, "eth0", "veth", 0)
    found = uplinks((LO, node, POD), (Route(2, 4), Route(2, 6)), (address(2, "192.0.2.1/24"),))
    assert found == {2}
    assert pod_interfaces((LO, node, POD), found) == [POD]


def test_a_veth_with_the_nodes_address_is_an_uplink() -> None:
    node = link(2, "eth0", "veth", 0)
    addresses = (address(2, "192.0.2.1/24"), address(6, "10.0.0.1/32"))
    theirs = {ipaddress.ip_address("192.0.2.1")}
    assert uplinks((node, POD), (), addresses, theirs) == {2}


def test_a_pods_veth_with_a_gateway_address_is_no_uplink() -> None:
    assert uplinks((POD,), (), (address(6, "10.244.0.1/32"),)) == frozenset()


def test_a_bridge_with_the_default_route_is_an_uplink() -> None:
    assert uplinks(ALL, (Route(4, 4),)) == {4}


def test_named_uplinks_are_the_only_ones() -> None:
    assert uplinks(ALL, (Route(2, 4),), ADDRESSES, named=["eth1", "flannel*"]) == {3, 5}


def test_loopback_is_nothing() -> None:
    assert uplinks(ALL, (Route(1, 4),), named=["lo"]) == frozenset()
    assert pod_interfaces((LO,), (), ["*"]) == []


def test_pods_are_veths_into_other_namespaces() -> None:
    assert pod_interfaces(ALL, {2, 3, 5}) == [POD]


def test_patterns_take_any_kind_but_no_uplink() -> None:
    assert pod_interfaces(ALL, {2}, ["eth*", "veth2"]) == [STORAGE, LOCAL_VETH]
