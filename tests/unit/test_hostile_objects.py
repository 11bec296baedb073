"""Objects of which a part is wrong: what that part costs, what is said, and that nothing is raised
whatever the bytes are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.addresses import parse_address
from lbctl.model.decode import NODES, SERVICES, SLICES, Changed, Kind
from lbctl.model.fields import Remarks
from lbctl.model.lenient import shallow
from lbctl.model.records import EndpointSlice, Node, Service
from lbctl.resolve.node import NodeSettings, node_facts
from lbctl.resolve.service import resolve
from tests.support.k8s_objects import Json, endpoint, endpoint_slice, node, port, service


def _read(kind: Kind[Any], value: Json) -> tuple[Any, str]:
    """The record and the remark about it, the same from JSON and from YAML."""
    from_json, from_yaml = Remarks(), Remarks()
    record = kind.decode(msgspec.json.encode(value), "default", from_json)
    assert kind.convert(value, "default", from_yaml) == record
    assert str(from_yaml) == str(from_json)
    return record, str(from_json)


def _service(value: Json) -> tuple[Service, str]:
    return _read(SERVICES, value)


def _slice(value: Json) -> tuple[EndpointSlice, str]:
    return _read(SLICES, value)


def _node(value: Json) -> tuple[Node, str]:
    return _read(NODES, value)


# One bad field costs that field.


def test_of_a_nodes_pod_ranges_one_of_each_family_counts() -> None:
    """The API knows no more; a hundred would be more than the programs have room for."""
    value = node()
    listed = [*(f"10.{n}.0.0/24" for n in range(100)), "fd00:1::/64", "fd00:2::/64"]
    value["spec"] = {"podCIDRs": listed}
    found, remark = _node(value)
    assert [str(p) for p in found.pod_cidrs] == ["10.0.0.0/24", "fd00:1::/64"]
    assert "spec.podCIDRs: more than one network of IPv4" in remark


def test_a_node_keeps_zone_and_taints() -> None:
    value = node(addresses=["192.168.0.2", "fd00::2", "no address"], zone="a")
    value["spec"] = {"taints": [{"key": "t"}, 5, {"key": None}], "podCIDRs": ["10.0.0.0/24", "x"]}
    value["metadata"]["labels"]["version"] = 1.0
    found, remark = _node(value)
    assert found.internal_ips == (parse_address("192.168.0.2"), parse_address("fd00::2"))
    assert (found.zone, [t.key for t in found.taints]) == ("a", ["t"])
    assert [str(p) for p in found.pod_cidrs] == ["10.0.0.0/24"]
    assert "(and 4 more)" in remark


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"addresses": []}, "endpoints[1].addresses: is empty"),
        ({"addresses": None}, "endpoints[1].addresses: expected array, got null"),
        ({"addresses": ["10.0.0.300"]}, "endpoints[1].addresses[0]: '10.0.0.300' is not"),
        ({"addresses": ["fd00::1"]}, "endpoints[1].addresses[0]: fd00::1 is not an IPv4"),
        ({"addresses": [5]}, "endpoints[1].addresses[0]: expected str, got int"),
        ({"addresses": "10.0.0.9"}, "endpoints[1].addresses: expected array, got str"),
        ({}, "endpoints[1]: object missing required field addresses"),
        (None, "endpoints[1]: expected object, got null"),
        ([], "endpoints[1]: expected object, got array"),
        ("10.0.0.9", "endpoints[1]: expected object, got str"),
    ],
)
def test_a_slice_keeps_its_other_endpoints(bad: object, said: str) -> None:
    value = endpoint_slice()
    value["endpoints"] = [endpoint("10.0.0.1"), bad, endpoint("10.0.0.2")]
    found, remark = _slice(value)
    assert [e.address[-1] for e in found.endpoints] == [1, 2]
    assert said in remark


@pytest.mark.parametrize(
    "more",
    [
        {"conditions": {"ready": "yes", "serving": 1, "terminating": []}},
        {"conditions": "ready"},
        {"conditions": None},
        {"hints": {"forZones": "a", "forNodes": [{"name": 5}]}},
        {"hints": [1]},
        {"nodeName": 7},
        {"deprecatedTopology": {"a": {"b": []}}},
        {"zone": 3, "targetRef": 1},
    ],
)
def test_an_endpoint_is_used_whatever_else_it_says(more: Json) -> None:
    found, _ = _slice(endpoint_slice(endpoints=[{"addresses": ["10.0.0.1"], **more}]))
    (one,) = found.endpoints
    assert (one.ready, one.serving, one.terminating, one.node) == (True, True, False, "")


def test_another_address_of_the_same_endpoint_stands_in() -> None:
    """The API calls them interchangeable."""
    found, remark = _slice(endpoint_slice(endpoints=[{"addresses": ["x", None, "10.0.0.4"]}]))
    assert [e.address[-1] for e in found.endpoints] == [4]
    assert remark


@pytest.mark.parametrize(
    "bad",
    [
        port(protocol="QUIC"),
        port(protocol="tcp"),
        {**port(), "protocol": 6},
        port(0),
        port(-1),
        port(65536),
        {**port(), "port": 2**60},
        {**port(), "port": 80.5},
        {**port(), "port": True},
        {**port(), "port": None},
        {**port(), "port": "80"},
        {**port(), "name": 5},
        {"name": "x"},
        None,
        80,
    ],
)
def test_a_bad_port_costs_itself(bad: Any) -> None:
    found, remark = _service(service(ports=[port(53, "dns", "UDP"), bad, port(81, "web")]))
    assert [p.name for p in found.ports] == ["dns", "web"]
    assert "spec.ports[1]" in remark
    of_slice, remark = _slice(endpoint_slice(ports=[port(53, "dns", "UDP"), bad, port(81, "web")]))
    assert [p.name for p in of_slice.ports] == ["dns", "web"]
    # Left out or null is every port, for a slice: that is not wrong, and nothing we can use.
    assert "ports[1]" in remark or (isinstance(bad, dict) and bad.get("port") is None)


@pytest.mark.parametrize(
    ("spec", "attribute", "wanted"),
    [
        ({"type": "Magic"}, "type", "ClusterIP"),
        ({"type": 7}, "type", "ClusterIP"),
        ({"internalTrafficPolicy": "Near"}, "internal_local", False),
        ({"externalTrafficPolicy": "Near", "type": "NodePort"}, "external_local", False),
        ({"externalTrafficPolicy": [], "type": "NodePort"}, "external_local", False),
        ({"trafficDistribution": "PreferMoon"}, "internal_local", False),
        ({"sessionAffinity": "Cookie"}, "affinity_seconds", 0),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}},
            },
            "affinity_seconds",
            10800,
        ),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": "long"},
            "affinity_seconds",
            10800,
        ),
        ({"healthCheckNodePort": 70000}, "health_check_node_port", 0),
        ({"externalIPs": ["x", "1.1.1.1", 5]}, "external_ips", (parse_address("1.1.1.1"),)),
        ({"externalIPs": {"a": 1}}, "external_ips", ()),
        ({"ports": {"a": 1}}, "ports", ()),
        (
            {"clusterIPs": ["172.30.0.41", "no"]},
            "cluster_ips",
            (parse_address("172.30.0.41"),),
        ),
        ({"clusterIPs": ["no", "fd00::1"]}, "cluster_ips", (parse_address("fd00::1"),)),
        ({"clusterIPs": ["no"]}, "cluster_ips", (parse_address("172.30.0.41"),)),
        ({"clusterIPs": 5}, "cluster_ips", (parse_address("172.30.0.41"),)),
    ],
)
def test_a_wrong_value_is_the_default(spec: Json, attribute: str, wanted: object) -> None:
    found, remark = _service(service(**spec))
    assert getattr(found, attribute) == wanted
    assert remark
    assert "spec." in remark


def test_a_status_that_is_none_costs_the_balancer() -> None:
    wrongs: list[object] = [[], {"loadBalancer": []}]
    wrongs.append({"loadBalancer": {"ingress": [{"ip": "x"}, 5]}})
    for wrong in wrongs:
        found, remark = _service({**service(), "status": wrong})
        assert found.ingress_ips == ()
        assert found.cluster_ips
        assert remark


def test_a_node_port_that_is_none_costs_the_node_port() -> None:
    found, remark = _service(service(type="NodePort", ports=[port(80, nodePort=-5)]))
    assert [(p.port, p.node_port) for p in found.ports] == [(80, 0)]
    assert "spec.ports[0].nodePort" in remark


@pytest.mark.parametrize("labels", [{"service.kubernetes.io/service-proxy-name": 5}])
def test_another_proxys_service_stays_that(labels: Json) -> None:
    value = service()
    value["metadata"]["labels"] = labels
    found, _ = _service(value)
    assert "another proxy" in found.left_alone


def test_unread_fields_cost_nothing() -> None:
    value = service(ipFamilies=[5], ipFamilyPolicy=[], selector=3, allocateLoadBalancerNodePorts=1)
    value["metadata"] |= {"annotations": {"a": 5}, "managedFields": "x", "generation": "x"}
    found, remark = _service(value)
    assert (found, remark) == (_service(service())[0], "")


def test_an_address_type_of_the_future_has_no_endpoints() -> None:
    found, remark = _slice(endpoint_slice(address_type="IPv10", endpoints=[endpoint("10.0.0.1")]))
    assert (found.family, found.endpoints) == (0, ())
    assert "'IPv10' is not IPv4, IPv6 or FQDN" in remark


FACTS = node_facts("worker-1", None, (), NodeSettings())


@pytest.mark.parametrize(
    ("ranges", "open4", "open6"),
    [
        (None, True, True),
        ([], True, True),
        (["10.0.0.0/8"], False, True),
        (["10.0.0.0/8", "10.0.0.0/64"], False, True),
        (["10.0.0.0/64"], False, True),
        (["fd00::/129"], True, False),
        (["anything"], False, True),
        ([""], False, False),
        ([5], False, False),
        ([None, "10.0.0.0/8"], False, False),
        ("10.0.0.0/8", False, False),
        ({"a": 1}, False, False),
        (["0.0.0.0/0", "x"], True, True),
    ],
)
def test_a_wrong_range_never_opens(ranges: object, open4: bool, open6: bool) -> None:
    """kube-proxy ignores it, which lets everybody in where nothing else is listed."""
    value = service(
        type="LoadBalancer",
        cluster_ips=["172.30.0.41", "fd00::41"],
        ingress=[{"ip": "9.9.9.9"}, {"ip": "fd00::9"}],
    )
    value["spec"]["loadBalancerSourceRanges"] = ranges
    found, _ = _service(value)
    by_family = {p.name[-2:]: p.source_ranges for p in resolve(found, (), FACTS)}
    assert {f: not r for f, r in by_family.items()} == {"v4": open4, "v6": open6}


def test_what_is_said_is_one_short_line() -> None:
    value = service("svc1", externalIPs=["x" * 100_000, "a\nb\x1b[31m", *["z"] * 5000])
    _, remark = _service(value)
    assert len(remark) < 400
    assert remark.isprintable()
    assert "(and 5001 more)" in remark


# Nothing is raised.

DEEP = b"[" * 5000 + b"]" * 5000


@pytest.mark.parametrize(
    "data",
    [
        b'{"metadata":{"name":"a","managedFields":%b},"spec":{"clusterIP":"1.2.3.4"}}' % DEEP,
        b'{"metadata":{"name":"a","x":1e999},"spec":{"clusterIP":"1.2.3.4","ports":%b}}' % DEEP,
        b'{"metadata":{"name":"a"},"spec":{"clusterIP":"1.2.3.4","ports":[{"port":1e999}]}}',
        b'{"metadata":{"name":"a"},"spec":{"clusterIP":"1.2.3.4","ports":[{"port":%b}]}}'
        % (b"9" * 5000),
        b'{"metadata":{"name":"a","labels":{"x":"\xff\xfe"}},"spec":{"clusterIP":"1.2.3.4"}}',
        rb'{"metadata":{"name":"a","labels":{"x":"\ud800"}},"spec":{"clusterIP":"1.2.3.4"}}',
    ],
)
def test_odd_json_is_an_object_still(data: bytes) -> None:
    """Alone, in a list beside others, and as an event."""
    found = SERVICES.decode(data)
    assert found.cluster_ips == (parse_address("1.2.3.4"),)
    good = msgspec.json.encode(service())
    head = b'{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":['
    page = SERVICES.decode_list(head + data + b"," + good + b"]}")
    assert [s.key.name for s in page.objects] == ["a", "svc1"]
    assert page.malformed == []
    event = SERVICES.decode_event(b'{"type":"ADDED","object":' + data + b"}")
    assert isinstance(event, Changed)


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=60))
def test_shallow_leaves_what_is_shallow(value: object) -> None:
    data = msgspec.json.encode({"a": value, "b": '["{\\"'})
    assert msgspec.json.decode(shallow(data))["b"] == '["{\\"'


def test_shallow_takes_linear_time_for_a_string_without_end() -> None:
    """A quadratic one would take hours."""
    assert shallow(b'{"a":"' + b'\\"' * 1_000_000)
