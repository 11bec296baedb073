"""Raw objects to records: what is read, what is shared, what a failure says."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest

from lbctl.addresses import parse_address
from lbctl.errors import ObjectError
from lbctl.model.decode import (
    NODES,
    SERVICES,
    SLICES,
    Bookmark,
    Changed,
    Deleted,
    Malformed,
    Refused,
)
from lbctl.model.records import ObjectKey, Protocol
from tests.support.k8s_objects import (
    Json,
    as_node,
    as_service,
    as_slice,
    endpoint,
    endpoint_slice,
    node,
    port,
    service,
)


def test_service_fields() -> None:
    found = as_service(
        service(
            type="LoadBalancer",
            cluster_ips=["172.30.0.041", "fd00::41"],
            externalIPs=["1.1.1.1"],
            ingress=[{"ip": "2.2.2.2"}, {"ip": "3.3.3.3", "ipMode": "Proxy"}, {"hostname": "x"}],
            loadBalancerSourceRanges=[" 10.1.2.3/8"],
            internalTrafficPolicy="Local",
            externalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
            healthCheckNodePort=30100,
            ports=[port(53, "dns", "UDP", nodePort=30053), {"port": 80}],
        )
    )
    assert found.cluster_ips == (parse_address("172.30.0.41"), parse_address("fd00::41"))
    assert found.external_ips == (parse_address("1.1.1.1"),)
    assert found.ingress_ips == (parse_address("2.2.2.2"),)
    assert [str(r) for r in found.source_ranges] == ["10.0.0.0/8"]
    assert found.internal_local
    assert found.external_local
    assert found.affinity_seconds == 10800
    assert found.health_check_node_port == 30100
    dns, plain = found.ports
    assert (dns.protocol, dns.port, dns.node_port) == (Protocol.UDP, 53, 30053)
    assert (plain.name, plain.protocol, plain.node_port) == ("", Protocol.TCP, 0)


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ({}, 0),
        ({"sessionAffinity": "None"}, 0),
        ({"sessionAffinity": "ClientIP"}, 10800),
        (
            {
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            },
            60,
        ),
    ],
)
def test_affinity(spec: Json, seconds: int) -> None:
    assert as_service(service(**spec)).affinity_seconds == seconds


@pytest.mark.parametrize(
    ("spec", "local"),
    [
        ({"type": "NodePort"}, True),
        ({"type": "LoadBalancer"}, True),
        ({"type": "ClusterIP"}, False),  # nothing of it is reachable from outside
        ({"type": "ClusterIP", "externalIPs": ["1.1.1.1"]}, True),
    ],
)
def test_external_policy_needs_an_external_address(spec: Json, local: bool) -> None:
    found = as_service(service(externalTrafficPolicy="Local", **spec))
    assert found.external_local == local


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (service(cluster_ips=["None"]), "headless"),
        (service(labels={"service.kubernetes.io/headless": ""}), "headless"),
        (service(labels={"service.kubernetes.io/service-proxy-name": "x"}), "another proxy"),
        (service(type="ExternalName", externalName="x.y"), "ExternalName"),
        (service(), ""),
    ],
)
def test_services_left_alone(value: Json, reason: str) -> None:
    found = as_service(value).left_alone
    assert found.startswith(reason) or reason in found
    assert bool(found) == bool(reason)


def test_conditions_and_places() -> None:
    found = as_slice(
        endpoint_slice(
            endpoints=[
                endpoint("10.0.0.1", None),
                endpoint("10.0.0.2", ready=False, serving=True, terminating=True),
                {"addresses": ["10.0.0.3", "10.0.0.4"], "conditions": {"ready": None}},
                {"addresses": ["10.0.0.5"], "hints": None, "nodeName": None},
            ],
            ports=[port(80), {"name": None, "port": 81}, {"name": "x", "port": None}],
        )
    )
    assert [(e.ready, e.serving, e.terminating) for e in found.endpoints] == [
        (True, True, False),
        (False, True, True),
        (True, True, False),
        (True, True, False),
    ]
    assert [e.address[-1] for e in found.endpoints] == [1, 2, 3, 5]
    assert [e.node for e in found.endpoints] == ["", "worker-1", "", ""]
    assert [(p.name, p.port) for p in found.ports] == [("http", 80), ("", 81)]
    assert found.service == ObjectKey("ns1", "svc1")


def test_host_name_slices_have_no_endpoints() -> None:
    value = endpoint_slice(endpoints=[endpoint("example.test")], address_type="FQDN")
    assert as_slice(value).endpoints == ()
    assert as_slice(value).family == 0


def test_null_lists_are_empty() -> None:
    value = {**endpoint_slice(), "endpoints": None, "ports": None}
    assert (as_slice(value).endpoints, as_slice(value).ports) == ((), ())


def test_node_fields() -> None:
    value = node(addresses=["192.168.0.2", "fd00::2"], zone="a")
    value["spec"] = {
        "podCIDRs": ["10.1.0.0/24"],
        "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}],
    }
    value["status"]["addresses"].append({"type": "ExternalIP", "address": "8.8.8.8"})
    value["status"]["addresses"].append({"type": "Hostname", "address": "worker-1"})
    found = as_node(value)
    assert found.internal_ips == (parse_address("192.168.0.2"), parse_address("fd00::2"))
    assert found.external_ips == (parse_address("8.8.8.8"),)
    assert [str(c) for c in found.pod_cidrs] == ["10.1.0.0/24"]
    assert (found.zone, found.deleting, found.taints[0].effect) == ("a", False, "NoSchedule")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**service(), "spec": []}, "Service ns1/svc1: spec: expected object, got array"),
        (service(name=""), "Service ns1/(no name): metadata.name: is missing"),
        (service(name="a/b"), "metadata.name: 'a/b' is no name of an object"),
        (service(name="a" * 300), "is no name of an object"),
        ({"metadata": {"name": "a"}}, "Service default/a: object missing required field spec"),
        ({"metadata": {"name": "a", "namespace": 5}, "spec": {}}, "metadata.namespace: expected"),
    ],
)
def test_failures_name_object_and_field(value: Json, message: str) -> None:
    with pytest.raises(ObjectError) as from_yaml:
        SERVICES.convert(value)
    with pytest.raises(ObjectError) as from_json:
        SERVICES.decode(msgspec.json.encode(value))
    assert message in from_yaml.value.message
    assert from_json.value.message == from_yaml.value.message


def _event(kind: str, value: Json) -> bytes:
    return msgspec.json.encode({"type": kind, "object": value})


def test_events() -> None:
    value = service()
    value["metadata"]["resourceVersion"] = "7"
    for kind in ("ADDED", "MODIFIED"):
        assert SERVICES.decode_event(_event(kind, value)) == Changed(as_service(value), "7")
    assert SERVICES.decode_event(_event("DELETED", value)) == Deleted(ObjectKey("ns1", "svc1"), "7")
    mark = {"kind": "Service", "metadata": {"resourceVersion": "9"}, "spec": {}, "status": {}}
    assert SERVICES.decode_event(_event("BOOKMARK", mark)) == Bookmark("9")
    gone = {"kind": "Status", "code": 410, "reason": "Expired"}
    assert SERVICES.decode_event(_event("ERROR", gone)) == Refused(410, "Expired")
    assert NODES.decode_event(_event("DELETED", node())) == Deleted(ObjectKey("", "worker-1"), "")


def test_an_object_that_cannot_be_read_can_still_be_deleted() -> None:
    broken = {**service(), "spec": 5}
    assert isinstance(SERVICES.decode_event(_event("ADDED", broken)), Malformed)
    assert SERVICES.decode_event(_event("DELETED", broken)) == Deleted(ObjectKey("ns1", "svc1"), "")


def test_malformed_event_keeps_its_version() -> None:
    broken = {**endpoint_slice(), "addressType": None}
    broken["metadata"]["resourceVersion"] = "12"
    event = SLICES.decode_event(_event("MODIFIED", broken))
    assert isinstance(event, Malformed)
    assert event.resource_version == "12"
    assert event.key == ObjectKey("ns1", "svc1-1")
    assert event.message == "EndpointSlice ns1/svc1-1: addressType: expected str, got null"


@pytest.mark.parametrize("line", [b'{"type":"ADD', b"[]", b'{"type":"ADDED"}', b"\xff"])
def test_lines_that_are_no_events(line: bytes) -> None:
    with pytest.raises(ObjectError, match="a watch event of Service"):
        SERVICES.decode_event(line)


def test_one_bad_item_does_not_spoil_a_list() -> None:
    items = [service("a"), {**service("b"), "spec": 1}, {"metadata": 5}, service("c")]
    meta = {"resourceVersion": "5", "continue": "more"}
    data = {"kind": "ServiceList", "apiVersion": "v1", "metadata": meta, "items": items}
    page = SERVICES.decode_list(msgspec.json.encode(data))
    assert [s.key.name for s in page.objects] == ["a", "c"]
    assert [m.key.name for m in page.malformed] == ["b", ""]
    assert (page.resource_version, page.next) == ("5", "more")
    none = {**data, "items": None}
    assert SERVICES.decode_list(msgspec.json.encode(none)).objects == []
    with pytest.raises(ObjectError, match="ServiceList"):
        SERVICES.decode_list(b"<html>")


def test_repeated_texts_are_shared() -> None:
    data = msgspec.json.encode(
        endpoint_slice(
            endpoints=[
                endpoint(f"10.0.0.{i}", f"a-long-node-name-{i % 2}", zones=["z"]) for i in range(9)
            ]
        )
    )
    one, two = SLICES.decode(data), SLICES.decode(data)
    assert one.endpoints[0].node is two.endpoints[2].node
    assert one.endpoints[0].hints is two.endpoints[3].hints
    assert one.ports[0].name is two.ports[0].name
    assert one.key.namespace is two.key.namespace


def test_memory_of_a_large_cluster() -> None:
    """10,000 services of 10 endpoints may take about 40 MB; a tenth of them is measured."""
    count = 1000
    raw_services = [
        msgspec.json.encode(service(f"svc{i}", cluster_ips=[f"172.30.{i // 250}.{i % 250}"]))
        for i in range(count)
    ]
    raw_slices = [
        msgspec.json.encode(
            endpoint_slice(
                f"svc{i}-abcde",
                f"svc{i}",
                endpoints=[
                    endpoint(f"10.{i // 250}.{i % 250}.{j}", f"worker-{j}", zones=["zone-a"])
                    for j in range(10)
                ],
            )
        )
        for i in range(count)
    ]
    tracemalloc.start()
    kept = [SERVICES.decode(raw) for raw in raw_services], [SLICES.decode(r) for r in raw_slices]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept[0]) == len(kept[1]) == count
    assert size / count < 4000
