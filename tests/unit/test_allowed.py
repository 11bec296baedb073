"""Addresses that no object may take, and endpoints that are none."""

from __future__ import annotations

import msgspec
import pytest

from lbctl.addresses import format_endpoint, parse_address, parse_prefix, special_use
from lbctl.model.decode import SLICES
from lbctl.model.fields import Remarks
from lbctl.model.records import ObjectKey
from lbctl.resolve.allowed import KUBELET_PORT
from lbctl.resolve.node import NodeFacts, NodeSettings, node_facts
from lbctl.resolve.ports import ResolvedPort
from lbctl.resolve.service import resolve
from tests.support.k8s_objects import (
    Json,
    as_node,
    as_service,
    endpoint,
    endpoint_slice,
    port,
    service,
)

NODE4, NODE6 = parse_address("192.168.0.2"), parse_address("fd00:1::2")
HERE = NodeFacts(
    name="worker-1",
    addresses=(NODE4, NODE6),
    primary4=NODE4,
    primary6=NODE6,
    nodeport_addresses=(NODE4, NODE6),
    own_ports=(10256,),
    api_places=frozenset({(parse_address("192.168.0.1"), 6443)}),
    pod_cidrs=(parse_prefix("10.244.0.0/16"), parse_prefix("fd00:2::/64")),
)
SPECIAL = {
    "127.0.0.1": "loopback",
    "127.255.0.9": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "0.0.0.0": "unspecified",
    "0.1.2.3": "unspecified",
    "::": "unspecified",
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "febf::1": "link-local",
    "224.0.0.1": "multicast",
    "239.1.1.1": "multicast",
    "ff02::1": "multicast",
    "::ffff:224.0.0.1": "multicast",
    "255.255.255.255": "broadcast",
    "::ffff:255.255.255.255": "broadcast",
}
ORDINARY = ["1.0.0.1", "126.1.1.1", "128.0.0.1", "169.253.1.1", "223.255.255.255", "240.0.0.1",
            "::2", "2001:db8::1", "fec0::1", "fd00::1"]  # fmt: skip


def places(found: ResolvedPort) -> set[str]:
    return {format_endpoint(f.address, f.port) for f in found.frontends}


def only(value: Json, node: NodeFacts = HERE) -> ResolvedPort:
    (found,) = resolve(as_service(value), (), node)
    return found


@pytest.mark.parametrize(("text", "kind"), SPECIAL.items())
def test_what_is_for_special_use(text: str, kind: str) -> None:
    assert special_use(parse_address(text)) == kind


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_not(text: str) -> None:
    assert special_use(parse_address(text)) == ""


@pytest.mark.parametrize("text", SPECIAL)
@pytest.mark.parametrize("kind", ["external", "balancer", "cluster"])
def test_no_object_takes_an_address_of_special_use(text: str, kind: str) -> None:
    v6 = ":" in text and "ffff" not in text
    good = "fd00:96::1" if v6 else "10.96.0.1"
    value = service(cluster_ips=[good], externalIPs=[text])
    if kind == "balancer":
        value = service(cluster_ips=[good], type="LoadBalancer", ingress=[{"ip": text}])
    if kind == "cluster":
        value = service(cluster_ips=[text])
    found = only(value)
    assert places(found) == (
        set() if kind == "cluster" else {f"[{good}]:80" if v6 else f"{good}:80"}
    )
    [warning] = found.warnings
    assert SPECIAL[text] in warning


def test_the_nodes_own_addresses_stay_usable_but_for_its_agents_ports() -> None:
    for number in (80, 443, 22):
        value = service(externalIPs=["192.168.0.2"], ports=[port(number)])
        assert f"192.168.0.2:{number}" in places(only(value))
    for number in (KUBELET_PORT, 10256):
        found = only(service(externalIPs=["192.168.0.2"], ports=[port(number)]))
        assert places(found) == {f"172.30.0.41:{number}"}
        assert f"192.168.0.2:{number}" in found.warnings[0]
    # Elsewhere those ports are like any other.
    found = only(service(externalIPs=["192.0.2.9"], ports=[port(KUBELET_PORT)]))
    assert f"192.0.2.9:{KUBELET_PORT}" in places(found)


@pytest.mark.parametrize("number", [KUBELET_PORT, 10256, 6443])
def test_node_ports_are_judged_as_well_on_loopback_too(number: int) -> None:
    """A cluster may give out any port; what listens at it on a node stays reachable."""
    here = {parse_address("127.0.0.1"), NODE4}
    node = msgspec.structs.replace(
        HERE,
        localhost_node_ports=True,
        api_places=frozenset((address, 6443) for address in here),
    )
    value = service(type="NodePort", ports=[port(80, nodePort=number)])
    found = only(value, node)
    assert places(found) == {"172.30.0.41:80"}
    assert {w.partition(" ")[0] for w in found.warnings} == {
        f"192.168.0.2:{number}",
        f"127.0.0.1:{number}",
    }
    value = service(type="NodePort", ports=[port(80, nodePort=30080)])
    assert places(only(value, node)) == {"172.30.0.41:80", "192.168.0.2:30080", "127.0.0.1:30080"}


def test_a_health_check_node_port_is_no_external_addresses() -> None:
    reserved = {32000: ObjectKey("default", "balanced")}

    def asked(text: str, number: int) -> ResolvedPort:
        value = as_service(service(externalIPs=[text], ports=[port(number)]))
        (found,) = resolve(value, (), HERE, None, reserved)
        return found

    found = asked("192.168.0.2", 32000)
    assert places(found) == {"172.30.0.41:32000"}
    assert "default/balanced" in found.warnings[0]
    assert "192.0.2.9:32000" in places(asked("192.0.2.9", 32000))
    assert "192.168.0.2:32001" in places(asked("192.168.0.2", 32001))


@pytest.mark.parametrize("kind", ["external", "balancer"])
def test_nobody_takes_the_api_server(kind: str) -> None:
    value = service(externalIPs=["192.168.0.1"], ports=[port(6443)])
    if kind == "balancer":
        value = service(type="LoadBalancer", ingress=[{"ip": "192.168.0.1"}], ports=[port(6443)])
    found = only(value)
    assert places(found) == {"172.30.0.41:6443"}
    assert "API server" in found.warnings[0]
    value["spec"]["ports"] = [port(80)]  # an ingress on a control-plane node
    assert "192.168.0.1:80" in places(only(value))


def test_the_api_server_may_be_a_service() -> None:
    node = msgspec.structs.replace(
        HERE, api_places=frozenset({(parse_address("172.30.0.41"), 443)})
    )
    assert places(only(service(ports=[port(443)]), node)) == {"172.30.0.41:443"}


def test_nobody_takes_a_pods_address() -> None:
    for text in ("10.244.3.7", "fd00:2::7"):
        v6 = ":" in text
        value = service(cluster_ips=["fd00:96::1" if v6 else "10.96.0.1"], externalIPs=[text])
        found = only(value)
        assert len(found.frontends) == 1
        assert "pod's" in found.warnings[0]


def test_a_range_that_nodes_share_says_nothing_about_pods() -> None:
    given = NodeSettings(cluster_cidrs=(parse_prefix("10.0.0.0/8"),))
    flat = as_node(
        {
            "metadata": {"name": "worker-1"},
            "spec": {"podCIDRs": ["10.4.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.1.0.2"}]},
        }
    )
    facts = node_facts("worker-1", flat, (), given)
    assert facts.pod_cidrs == (parse_prefix("10.4.1.0/24"),)
    assert len(only(service(externalIPs=["10.9.9.9"]), facts).frontends) == 2
    assert len(only(service(externalIPs=["10.4.1.9"]), facts).frontends) == 1


def test_external_ips_only_where_the_operator_says() -> None:
    node = msgspec.structs.replace(
        HERE, external_ip_cidrs=(parse_prefix("192.0.2.0/24"), parse_prefix("2001:db8::/64"))
    )
    assert "192.0.2.7:80" in places(only(service(externalIPs=["192.0.2.7"]), node))
    found = only(service(externalIPs=["198.51.100.7", "192.168.0.2"]), node)
    assert places(found) == {"172.30.0.41:80"}
    assert len(found.warnings) == 2
    assert "--external-ip-cidr" in found.warnings[0]
    # A load balancer's address comes from its controller, not from whoever writes the service.
    value = service(type="LoadBalancer", ingress=[{"ip": "198.51.100.7"}])
    assert "198.51.100.7:80" in places(only(value, node))


@pytest.mark.parametrize("text", SPECIAL)
def test_an_endpoint_of_special_use_is_none(text: str) -> None:
    v6 = ":" in text and "ffff" not in text
    good = "2001:db8::9" if v6 else "10.1.0.9"
    family = "IPv6" if v6 else "IPv4"
    value = endpoint_slice(endpoints=[endpoint(text), endpoint(good)], address_type=family)
    remarks = Remarks()
    found = SLICES.convert(value, "default", remarks)
    assert [e.address for e in found.endpoints] == [parse_address(good)]
    assert SPECIAL[text] in str(remarks)


def test_age_of_objects() -> None:
    def seniority(created: object, uid: str = "") -> bytes:
        value = service()
        value["metadata"] |= {"creationTimestamp": created, "uid": uid}
        return as_service(value).seniority

    old = seniority("2024-01-02T03:04:05Z", "ffffffff-0000-0000-0000-000000000000")
    young = seniority("2024-01-02T03:04:06Z", "00000000-0000-0000-0000-000000000000")
    assert old < young
    assert seniority("2024-01-02T03:04:05Z", "0" * 32) < old
    assert len(old) == len(young)
    assert seniority(None) == seniority("yesterday") == b""
