"""API objects as they are sent, only the fields a proxy reads, and their way into the model.

Numbers and types are checked by msgspec while decoding; what it cannot know (addresses, networks,
protocols) is checked here. Either way the failure is an `InvalidField` with the path of the field.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Annotated

import msgspec

from lbctl.addresses import FAMILIES, IPV4, IPV6, Prefix, family_of, parse_address, parse_prefix
from lbctl.model.records import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    EndpointSlice,
    Hints,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
    Taint,
)

DEFAULT_AFFINITY_SECONDS = 10800
_SLICE_FAMILIES = {"IPv4": IPV4, "IPv6": IPV6, "FQDN": 0}
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrZero = Annotated[int, msgspec.Meta(ge=0, le=65535)]
AffinitySeconds = Annotated[int, msgspec.Meta(ge=1, le=86400)]


class InvalidField(ValueError):
    """A field whose value the API server would not accept. `path` is like spec.clusterIPs[0]."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")


class Wire(msgspec.Struct, rename="camel", gc=False):
    """Base of all: JSON names are camel case, unknown fields are skipped."""


class Metadata(Wire):
    name: str = ""
    namespace: str | None = None
    labels: dict[str, str] | None = None
    resource_version: str = ""
    deletion_timestamp: str | None = None


class WireServicePort(Wire):
    port: PortNumber
    name: str | None = None
    protocol: str | None = None
    node_port: PortOrZero | None = None


class WireClientIP(Wire):
    timeout_seconds: AffinitySeconds | None = None


class WireAffinityConfig(Wire):
    client_ip: WireClientIP | None = msgspec.field(default=None, name="clientIP")


class WireServiceSpec(Wire):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: list[str] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: list[str] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: list[str] | None = None
    ports: list[WireServicePort] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: WireAffinityConfig | None = None
    health_check_node_port: PortOrZero | None = None


class WireIngress(Wire):
    ip: str | None = None
    ip_mode: str | None = None


class WireLoadBalancer(Wire):
    ingress: list[WireIngress] | None = None


class WireServiceStatus(Wire):
    load_balancer: WireLoadBalancer | None = None


class WireService(Wire):
    metadata: Metadata
    spec: WireServiceSpec
    status: WireServiceStatus | None = None

    def to_model(self, namespace: str = "default") -> Service:
        """The record of this object. Raises InvalidField."""
        spec = self.spec
        kind = spec.type or "ClusterIP"
        if kind not in _TYPES:
            raise InvalidField("spec.type", f"{kind!r} is none of {', '.join(_TYPES)}")
        external = _addresses("spec.externalIPs", spec.external_ips)
        reachable = kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and external)
        return Service(
            key=_key(self.metadata, namespace),
            type=intern(kind),
            cluster_ips=_cluster_ips(spec),
            external_ips=external,
            ingress_ips=_ingress_ips(self.status),
            source_ranges=_prefixes(
                "spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges
            ),
            ports=tuple(_service_port(i, p) for i, p in enumerate(spec.ports or ())),
            internal_local=spec.internal_traffic_policy == "Local",
            external_local=bool(reachable) and spec.external_traffic_policy == "Local",
            affinity_seconds=_affinity(spec),
            health_check_node_port=spec.health_check_node_port or 0,
            left_alone=_left_alone(self.metadata, spec, kind),
        )


class WireSlicePort(Wire):
    name: str | None = None
    protocol: str | None = None
    port: PortNumber | None = None


class WireConditions(Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Named(Wire):
    name: str


class WireHints(Wire):
    for_zones: list[Named] | None = None
    for_nodes: list[Named] | None = None


class WireEndpoint(Wire):
    addresses: list[str]
    conditions: WireConditions | None = None
    node_name: str | None = None
    hints: WireHints | None = None


class WireEndpointSlice(Wire):
    metadata: Metadata
    address_type: str
    endpoints: list[WireEndpoint] | None = None
    ports: list[WireSlicePort] | None = None

    def to_model(self, namespace: str = "default") -> EndpointSlice:
        """The record of this object. Raises InvalidField."""
        family = _SLICE_FAMILIES.get(self.address_type)
        if family is None:
            raise InvalidField("addressType", f"{self.address_type!r} is not IPv4, IPv6 or FQDN")
        key = _key(self.metadata, namespace)
        labels = self.metadata.labels or {}
        service = labels.get(SERVICE_NAME_LABEL)
        if PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels:
            service = None
        return EndpointSlice(
            key=key,
            service=ObjectKey(key.namespace, service) if service else None,
            family=family,
            ports=tuple(
                SlicePort(intern(p.name or ""), _protocol(f"ports[{i}]", p.protocol), p.port)
                for i, p in enumerate(self.ports or ())
                if p.port is not None
            ),
            endpoints=tuple(_endpoint(i, e, family) for i, e in enumerate(self.endpoints or ()))
            if family in FAMILIES
            else (),
        )


class WireNodeAddress(Wire):
    type: str
    address: str


class WireNodeStatus(Wire):
    addresses: list[WireNodeAddress] | None = None


class WireTaint(Wire):
    key: str
    effect: str = ""


class WireNodeSpec(Wire):
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: list[str] | None = msgspec.field(default=None, name="podCIDRs")
    taints: list[WireTaint] | None = None


class WireNode(Wire):
    metadata: Metadata
    spec: WireNodeSpec | None = None
    status: WireNodeStatus | None = None

    def to_model(self, namespace: str = "") -> Node:
        """The record of this object; `namespace` is ignored. Raises InvalidField."""
        spec = self.spec or WireNodeSpec()
        if not self.metadata.name:
            raise InvalidField("metadata.name", "is missing")
        return Node(
            name=intern(self.metadata.name),
            internal_ips=self._ips("InternalIP"),
            external_ips=self._ips("ExternalIP"),
            zone=intern((self.metadata.labels or {}).get(ZONE_LABEL, "")),
            pod_cidrs=_prefixes(
                "spec.podCIDRs", spec.pod_cidrs or ([spec.pod_cidr] if spec.pod_cidr else None)
            ),
            taints=tuple(Taint(t.key, t.effect) for t in spec.taints or ()),
            deleting=self.metadata.deletion_timestamp is not None,
        )

    def _ips(self, kind: str) -> tuple[bytes, ...]:
        addresses = (self.status.addresses if self.status else None) or ()
        return tuple(
            _address(f"status.addresses[{i}].address", a.address)
            for i, a in enumerate(addresses)
            if a.type == kind
        )


def _key(metadata: Metadata, namespace: str) -> ObjectKey:
    if not metadata.name:
        raise InvalidField("metadata.name", "is missing")
    return ObjectKey(intern(metadata.namespace or namespace), metadata.name)


def _address(path: str, text: str) -> bytes:
    try:
        return parse_address(text)
    except ValueError as error:
        raise InvalidField(path, str(error)) from error


def _addresses(path: str, texts: list[str] | None) -> tuple[bytes, ...]:
    return tuple(_address(f"{path}[{i}]", text) for i, text in enumerate(texts or ()))


def _prefixes(path: str, texts: list[str] | None) -> tuple[Prefix, ...]:
    prefixes = []
    for i, text in enumerate(texts or ()):
        try:
            prefixes.append(parse_prefix(text))
        except ValueError as error:
            raise InvalidField(f"{path}[{i}]", str(error)) from error
    return tuple(prefixes)


def _protocol(path: str, text: str | None) -> Protocol:
    try:
        return Protocol[text or "TCP"]
    except KeyError as error:
        known = ", ".join(p.name for p in Protocol)
        raise InvalidField(f"{path}.protocol", f"{text!r} is none of {known}") from error


def _service_port(index: int, port: WireServicePort) -> ServicePort:
    protocol = _protocol(f"spec.ports[{index}]", port.protocol)
    return ServicePort(intern(port.name or ""), protocol, port.port, port.node_port or 0)


def _cluster_ips(spec: WireServiceSpec) -> tuple[bytes, ...]:
    """clusterIPs, or the clusterIP of an object from before there was a list."""
    if spec.cluster_ips:
        path, texts = "spec.clusterIPs", spec.cluster_ips
    else:
        path, texts = "spec.clusterIP", [spec.cluster_ip or ""]
    if texts[0] in ("", "None"):
        return ()
    return _addresses(path, texts)


def _ingress_ips(status: WireServiceStatus | None) -> tuple[bytes, ...]:
    balancer = status.load_balancer if status else None
    return tuple(
        _address(f"status.loadBalancer.ingress[{i}].ip", ingress.ip)
        for i, ingress in enumerate((balancer.ingress if balancer else None) or ())
        if ingress.ip and ingress.ip_mode != "Proxy"
    )


def _affinity(spec: WireServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    return seconds or DEFAULT_AFFINITY_SECONDS


def _left_alone(metadata: Metadata, spec: WireServiceSpec, kind: str) -> str:
    labels = metadata.labels or {}
    if PROXY_NAME_LABEL in labels:
        return f"label {PROXY_NAME_LABEL}: another proxy serves it"
    if kind == "ExternalName":
        return "type ExternalName: only DNS knows it"
    if HEADLESS_LABEL in labels or "None" in (spec.cluster_ip, *(spec.cluster_ips or ())):
        return "headless: clients connect to the pods"
    return ""


_NO_CONDITIONS = WireConditions()
_NO_HINTS = Hints()


def _endpoint(index: int, endpoint: WireEndpoint, family: int) -> SliceEndpoint:
    """Only the first address counts: the API calls the others interchangeable with it."""
    path = f"endpoints[{index}].addresses"
    if not endpoint.addresses:
        raise InvalidField(path, "is empty")
    address = _address(f"{path}[0]", endpoint.addresses[0])
    if family_of(address) != family:
        raise InvalidField(f"{path}[0]", f"{endpoint.addresses[0]} is not an IPv{family} address")
    conditions = endpoint.conditions or _NO_CONDITIONS
    hints = endpoint.hints
    return SliceEndpoint(
        address=address,
        node=intern(endpoint.node_name) if endpoint.node_name else "",
        ready=conditions.ready is not False,
        serving=conditions.serving is not False,
        terminating=conditions.terminating is True,
        hints=_NO_HINTS
        if hints is None
        else _shared_hints(
            tuple([n.name for n in hints.for_zones or ()]),
            tuple([n.name for n in hints.for_nodes or ()]),
        ),
    )


@lru_cache(maxsize=8192)
def _shared_hints(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hints:
    """One record for all endpoints with the same hints: there are few zones and many endpoints."""
    return Hints(tuple(intern(z) for z in zones), tuple(intern(n) for n in nodes))
