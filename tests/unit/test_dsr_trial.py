"""The datagrams by which doctor tries DSR, with scapy as the judge."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, in4_chksum
from scapy.layers.inet6 import IPv6, in6_chksum
from scapy.utils import checksum

from lbctl.errors import LbError
from lbctl.host import dsrtrial
from lbctl.host.dsrtrial import Inner

PORTS = st.integers(1, 65535)
PAYLOADS = st.binary(max_size=300)


def inners(addresses: st.SearchStrategy[str]) -> st.SearchStrategy[Inner]:
    return st.builds(Inner, addresses, PORTS, addresses, PORTS, PAYLOADS)


@given(inners(st.integers(0, 2**32 - 1).map(lambda n: str(IPv4Address(n)))))
def test_ipv4(inner: Inner) -> None:
    packet = dsrtrial.build(inner)
    ip = IP(packet)
    assert (ip.src, ip.dst, ip.len, ip.proto) == (*inner[::2][:2], len(packet), 17)
    assert checksum(packet[:20]) == 0
    assert ip.flags.DF
    assert in4_chksum(17, ip, packet[20:]) == 0
    assert (ip[UDP].sport, ip[UDP].dport) == (inner.source_port, inner.destination_port)
    assert dsrtrial.parse(packet) == inner


@given(inners(st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n)))))
def test_ipv6(inner: Inner) -> None:
    packet = dsrtrial.build(inner)
    ip = IPv6(packet)
    assert (IPv6Address(ip.src), IPv6Address(ip.dst)) == tuple(map(IPv6Address, inner[::2][:2]))
    assert (ip.plen, ip.nh) == (len(packet) - 40, 17)
    sum6: Any = in6_chksum
    assert sum6(17, ip, packet[40:]) == 0
    found = dsrtrial.parse(packet)
    assert found is not None
    assert found[1::2] == inner[1::2]
    assert found.payload == inner.payload


@given(st.binary(max_size=120))
def test_anything_may_come(data: bytes) -> None:
    found = dsrtrial.parse(data)
    assert found is None or data[0] in (0x45, 0x60)


def test_addresses_of_two_families_make_no_trial() -> None:
    with pytest.raises(LbError, match="different families"):
        dsrtrial.asking("172.18.0.12", "2001:db8::80", 6080)
