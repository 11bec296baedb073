"""Builds the Kubernetes objects of a lab: its nodes, and services with their EndpointSlices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from lbctl.lab.topology import Pod, Topology

# A Kubernetes object as JSON: the lab hands it to the agents as it stands.
JsonObject = dict[str, Any]

FAMILIES = ("IPv4", "IPv6")


class Port(msgspec.Struct, frozen=True):
    """One port of a service. `target` is the port of the endpoints (the same if 0)."""

    port: int
    target: int = 0
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0


class Endpoint(msgspec.Struct, frozen=True):
    """A pod as endpoint of a service, with its conditions."""

    pod: Pod
    ready: bool = True
    serving: bool = True
    terminating: bool = False


def cluster_ips(namespace: str, name: str) -> tuple[str, str]:
    """Addresses for a service, made from its name: always the same, and rarely another's."""
    number = 256 + zlib.crc32(f"{namespace}/{name}".encode()) % 65000
    return f"10.96.{number >> 8}.{number & 255}", f"fd00:10:96::{number:x}"


def service(
    name: str,
    ports: Sequence[Port],
    endpoints: Sequence[Pod | Endpoint],
    *,
    namespace: str = "default",
    addresses: tuple[str, ...] | None = None,
    spec: Mapping[str, Any] | None = None,
    ingress: Sequence[str] = (),
) -> list[JsonObject]:
    """A Service and one EndpointSlice per family.

    `addresses` are the cluster IPs (one or two; default: made from the name), `spec` is merged
    into the Service's spec, `ingress` are addresses that a load balancer has given it.
    """
    chosen = addresses or cluster_ips(namespace, name)
    families = ["IPv6" if ":" in address else "IPv4" for address in chosen]
    body: JsonObject = {
        "type": "ClusterIP",
        "clusterIP": chosen[0],
        "clusterIPs": list(chosen),
        "ipFamilies": families,
        "ports": [_service_port(port) for port in ports],
    }
    found: JsonObject = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": body | dict(spec or {}),
    }
    if ingress:
        found["status"] = {"loadBalancer": {"ingress": [{"ip": address} for address in ingress]}}
    return [
        found,
        *(endpoint_slice(name, ports, endpoints, family, namespace) for family in families),
    ]


def _service_port(port: Port) -> JsonObject:
    described: JsonObject = {
        "name": port.name,
        "port": port.port,
        "targetPort": port.target or port.port,
        "protocol": port.protocol,
    }
    if port.node_port:
        described["nodePort"] = port.node_port
    return described


def endpoint_slice(
    service_name: str,
    ports: Sequence[Port],
    endpoints: Sequence[Pod | Endpoint],
    family: str,
    namespace: str = "default",
) -> JsonObject:
    """The EndpointSlice of one family ("IPv4" or "IPv6") of a service."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-{family.lower()}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": family,
        "endpoints": [_endpoint(endpoint, FAMILIES.index(family)) for endpoint in endpoints],
        "ports": [
            {"name": port.name, "port": port.target or port.port, "protocol": port.protocol}
            for port in ports
        ],
    }


def _endpoint(endpoint: Pod | Endpoint, family: int) -> JsonObject:
    found = Endpoint(endpoint) if isinstance(endpoint, Pod) else endpoint
    return {
        "addresses": [found.pod.addresses[family]],
        "conditions": {
            "ready": found.ready,
            "serving": found.serving,
            "terminating": found.terminating,
        },
        "nodeName": found.pod.node,
        "targetRef": {"kind": "Pod", "name": found.pod.name, "namespace": "default"},
    }


def nodes(topology: Topology) -> list[JsonObject]:
    """The Node objects of a lab."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": node.name,
                "labels": {
                    "kubernetes.io/hostname": node.name,
                    "topology.kubernetes.io/zone": node.zone,
                },
            },
            "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs)},
            "status": {
                "addresses": [
                    *({"type": "InternalIP", "address": address} for address in node.addresses),
                    {"type": "Hostname", "address": node.name},
                ]
            },
        }
        for node in topology.nodes
    ]


def as_list(objects: Sequence[JsonObject]) -> bytes:
    """Content of a manifest file that holds `objects`."""
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": list(objects)})
