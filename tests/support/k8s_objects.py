"""Kubernetes objects for tests, as the JSON an API server would return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lbctl.model.balancing import WEIGHT
from lbctl.model.decode import NODES, SERVICES, SLICES
from lbctl.model.records import EndpointSlice, Node, Service

Json = dict[str, Any]


def service(
    name: str = "svc1",
    namespace: str = "ns1",
    *,
    cluster_ips: Sequence[str] = ("172.30.0.41",),
    ports: Iterable[Json] | None = None,
    ingress: Iterable[Json] = (),
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> Json:
    """A Service of one TCP port 80, unless told otherwise; `spec` holds more fields of the spec."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips[0] if cluster_ips else "",
            "clusterIPs": list(cluster_ips),
            "ports": list(ports) if ports is not None else [port()],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": list(ingress)}},
    }


def port(number: int = 80, name: str = "http", protocol: str = "TCP", **more: Any) -> Json:
    return {"name": name, "port": number, "protocol": protocol, **more}


def endpoint(
    address: str,
    node: str | None = "worker-1",
    *,
    zones: Sequence[str] = (),
    nodes: Sequence[str] = (),
    **conditions: bool,
) -> Json:
    """An endpoint; conditions not given are unset."""
    value: Json = {"addresses": [address], "conditions": conditions}
    if node is not None:
        value["nodeName"] = node
    if zones or nodes:
        value["hints"] = {
            "forZones": [{"name": z} for z in zones],
            "forNodes": [{"name": n} for n in nodes],
        }
    return value


def endpoint_slice(
    name: str = "svc1-1",
    of: str = "svc1",
    namespace: str = "ns1",
    *,
    endpoints: Iterable[Json] = (),
    ports: Iterable[Json] | None = None,
    address_type: str = "IPv4",
) -> Json:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": address_type,
        "ports": list(ports) if ports is not None else [port()],
        "endpoints": list(endpoints),
    }


def slice_of(*endpoints: Json) -> list[Json]:
    """All slices of a service: one."""
    return [endpoint_slice(ports=[port(8080)], endpoints=endpoints)]


def slice_weighing(weight: str, *endpoints: Json) -> Json:
    """Another one of the same service, whose endpoints have this weight."""
    made = endpoint_slice("svc1-w", ports=[port(8080)], endpoints=endpoints)
    made["metadata"]["annotations"] = {WEIGHT: weight}
    return made


def without_node(part: Json, name: str) -> Json:
    """A slice as it is once this node is gone."""
    return {**part, "endpoints": [e for e in part["endpoints"] if e["nodeName"] != name]}


def node(
    name: str = "worker-1", addresses: Sequence[str] = ("192.168.0.2",), zone: str | None = None
) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"topology.kubernetes.io/zone": zone} if zone else {},
        },
        "spec": {},
        "status": {"addresses": [{"type": "InternalIP", "address": a} for a in addresses]},
    }


def as_service(value: Json) -> Service:
    return SERVICES.convert(value)


def as_slice(value: Json) -> EndpointSlice:
    return SLICES.convert(value)


def as_node(value: Json) -> Node:
    return NODES.convert(value)
