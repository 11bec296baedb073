"""Addresses and networks in their 16-byte form."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lbctl.addresses import (
    Prefix,
    family_of,
    format_address,
    format_endpoint,
    is_link_local,
    is_loopback,
    is_plain,
    parse_address,
    parse_prefix,
    special_use,
)


@given(st.ip_addresses(v=4))
def test_ipv4_there_and_back(address: ipaddress.IPv4Address) -> None:
    parsed = parse_address(str(address))
    assert parsed == bytes(10) + b"\xff\xff" + address.packed
    assert family_of(parsed) == 4
    assert format_address(parsed) == str(address)
    assert is_loopback(parsed) == address.is_loopback


@given(
    st.one_of(st.ip_addresses(), st.ip_addresses(network="224.0.0.0/3")), st.sampled_from([4, 6])
)
def test_what_is_plain_is_of_no_special_use(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, family: int
) -> None:
    parsed = parse_address(str(address))
    if is_plain(parsed, family):
        assert (family_of(parsed), special_use(parsed)) == (family, "")
    assert is_plain(parse_address("10.1.2.3"), 4)
    assert is_plain(parse_address("fd00::1"), 6)


@given(st.ip_addresses(v=6))
def test_ipv6_there_and_back(address: ipaddress.IPv6Address) -> None:
    assume(address.ipv4_mapped is None)
    parsed = parse_address(str(address))
    assert parsed == address.packed
    assert family_of(parsed) == 6
    assert ipaddress.ip_address(format_address(parsed)) == address
    assert is_loopback(parsed) == address.is_loopback
    assert is_link_local(parsed) == address.is_link_local


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(1, 3)), min_size=4, max_size=4))
def test_leading_zeros_are_decimal(octets: list[tuple[int, int]]) -> None:
    padded = ".".join("0" * (zeros - 1) + str(value) for value, zeros in octets)
    assert parse_address(padded)[12:] == bytes(value for value, _ in octets)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "None",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.-4",
        "1.2.3.4 ",
        "0x1.2.3.4",
        "1.2.3.²",
        ":",
        "1::2::3",
        "fe80::1%eth0",
        "a.b.c.d",
        "1.2.3.4\x00",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IP address"):
        parse_address(text)


def test_endpoints_read_as_people_write_them() -> None:
    assert format_endpoint(parse_address("10.0.0.1"), 80) == "10.0.0.1:80"
    assert format_endpoint(parse_address("fd00::1"), 80) == "[fd00::1]:80"


@given(st.ip_addresses(), st.data())
def test_prefixes_agree_with_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject
) -> None:
    bits = data.draw(st.integers(0, address.max_prefixlen))
    other = data.draw(st.ip_addresses(v=address.version))
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    prefix = parse_prefix(f"  {address}/{bits} ")
    # IPv4 in IPv6's clothes counts as IPv4.
    assume(
        not any(isinstance(a, ipaddress.IPv6Address) and a.ipv4_mapped for a in (address, other))
    )
    assert prefix.family == address.version
    assert prefix.is_everything == (bits == 0)
    assert parse_address(str(address)) in prefix
    assert (parse_address(str(other)) in prefix) == (other in network)
    assert parse_prefix(str(prefix)) == prefix


def test_families_do_not_contain_each_other() -> None:
    assert parse_address("10.0.0.1") not in parse_prefix("::/0")
    assert parse_address("fd00::1") not in parse_prefix("0.0.0.0/0")


def test_prefix_with_zeros_and_host_bits() -> None:
    assert str(parse_prefix("203.0.113.077/025")) == "203.0.113.0/25"
    assert parse_prefix("10.0.0.0/8") == Prefix(parse_address("10.0.0.0"), 104)


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "x/8", "/8"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|longer"):
        parse_prefix(text)
