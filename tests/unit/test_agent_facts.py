"""Facts about the node, from its object, its interfaces and the settings."""

import ipaddress

import pytest

from ebpf.kernel.netlink import Address, Network, Route
from lbctl.addresses import parse_address
from lbctl.agent.facts import Facts, device_addresses, local_addresses, primary_address
from lbctl.model.records import Node
from lbctl.resolve.node import NodeSettings


def address(index: int, text: str, scope: int = 0) -> Address:
    return Address(index, ipaddress.ip_address(text), 24, scope)


NETWORK = Network(
    links=(),
    addresses=(
        address(1, "127.0.0.1", 254),
        address(2, "10.244.0.1"),
        address(3, "169.254.7.7", 253),
        address(3, "192.0.2.7"),
        address(3, "192.0.2.8"),
        address(3, "fe80::7", 253),
        address(3, "2001:db8::7"),
    ),
    default_routes=(Route(3, 4),),
)


def node(*internal: str) -> Node:
    return Node("node1", internal_ips=tuple(map(parse_address, internal)))


def test_the_primary_address_is_of_the_interface_with_a_default_route_of_its_family() -> None:
    assert primary_address(NETWORK, 4) == parse_address("192.0.2.7")
    assert primary_address(NETWORK, 6) is None


def test_link_local_addresses_of_ipv6_are_not_the_nodes() -> None:
    others = [str(a.address) for a in NETWORK.addresses if str(a.address) != "fe80::7"]
    assert local_addresses(NETWORK) == sorted(map(parse_address, others))


@pytest.mark.parametrize(
    ("given", "internal", "expected"),
    [
        ((), (), "192.0.2.7"),
        ((), ("2001:db8::9",), "192.0.2.7"),  # of the other family alone
        ((), ("192.0.2.9",), "192.0.2.9"),
        (("192.0.2.10",), ("192.0.2.9",), "192.0.2.10"),
    ],
)
def test_settings_go_before_the_object_and_that_before_interfaces(
    given: tuple[str, ...], internal: tuple[str, ...], expected: str
) -> None:
    settings = NodeSettings(primary_addresses=tuple(map(parse_address, given)))
    facts = Facts("node1", settings, NETWORK)
    facts.node = node(*internal)
    facts.settle()
    assert facts.current.primary4 == parse_address(expected)


def test_a_devices_address_is_the_first_that_others_may_know_and_is_not_the_primary_one() -> None:
    facts = Facts("node1", NodeSettings(), NETWORK)
    found = device_addresses(NETWORK, facts.current)
    assert found == {2: {4: parse_address("10.244.0.1")}, 3: {6: parse_address("2001:db8::7")}}
    facts.node = node("192.0.2.8", "2001:db8::7")
    facts.settle()
    found = device_addresses(NETWORK, facts.current)
    assert found == {2: {4: parse_address("10.244.0.1")}, 3: {4: parse_address("192.0.2.7")}}


def test_settling_says_whether_anything_changed() -> None:
    facts = Facts("node1", NodeSettings(), NETWORK)
    assert not facts.settle()
    facts.node = node("192.0.2.7")  # as the interfaces say
    assert not facts.settle()
    facts.network = Network((), (address(3, "192.0.2.9"),), (Route(3, 4),))
    assert facts.settle()
    assert parse_address("192.0.2.9") in facts.current.addresses


def test_devices_are_worked_out_when_something_changed() -> None:
    facts = Facts("node1", NodeSettings(), NETWORK)
    found = facts.devices
    assert found == device_addresses(NETWORK, facts.current)
    assert not facts.settle()
    assert facts.devices is found
    facts.network = Network(
        (), (*NETWORK.addresses, address(4, "10.1.0.1")), NETWORK.default_routes
    )
    assert facts.devices == found | {4: {4: parse_address("10.1.0.1")}}
    facts.node = node("10.1.0.1")  # the node is another now, on the same network
    assert facts.settle()
    assert 4 not in facts.devices
