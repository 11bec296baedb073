"""API objects as they are sent, only the fields a proxy reads, and their way into the model.

Numbers and types are checked by msgspec while decoding, or by `lenient.py` where that fails; what
they cannot know (addresses, networks, protocols) is checked here, by `fields.py`. One endpoint,
port or address that is wrong costs itself and leaves a remark; an `InvalidField` is raised only
where nothing can be made of the object.
"""

from __future__ import annotations

from functools import lru_cache
from sys import intern
from typing import Annotated, Any, ClassVar

import msgspec

from lbctl.addresses import FAMILIES, IPV4, IPV6, family_of, is_plain, parse_address, special_use
from lbctl.model import balancing, fields
from lbctl.model.balancing import Annotations
from lbctl.model.fields import InvalidField, Remarks
from lbctl.model.records import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    SERVICE_NAME_LABEL,
    EndpointSlice,
    Hints,
    ObjectKey,
    Service,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)

DEFAULT_AFFINITY_SECONDS = 10800
_SLICE_FAMILIES = {"IPv4": IPV4, "IPv6": IPV6, "FQDN": 0}
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_POLICIES = ("Cluster", "Local")
_DISTRIBUTIONS = ("PreferClose", "PreferSameZone", "PreferSameNode")

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrZero = Annotated[int, msgspec.Meta(ge=0, le=65535)]
AffinitySeconds = Annotated[int, msgspec.Meta(ge=1, le=86400)]


class Wire(msgspec.Struct, rename="camel", gc=False):
    """Base of all: JSON names are camel case, unknown fields are skipped. `needed` are the optional
    fields that may be left out but not be wrong: without them it would be something else."""

    needed: ClassVar[frozenset[str]] = frozenset()


class Metadata(Wire):
    needed: ClassVar[frozenset[str]] = frozenset({"name", "namespace"})

    name: str = ""
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: Annotations | None = None
    resource_version: str = ""
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None
    uid: str = ""


class Whole(Wire):
    """An object. Items of a list leave `kind` and `api_version` out."""

    needed: ClassVar[frozenset[str]] = frozenset({"kind", "api_version"})

    metadata: Metadata
    kind: str = ""
    api_version: str = ""

    def is_bare(self) -> bool:
        """Whether there is nothing but metadata where the API always sends more."""
        return False


class WireServicePort(Wire):
    needed: ClassVar[frozenset[str]] = frozenset({"name", "protocol"})

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
    load_balancer_source_ranges: Any = None  # whatever it is: see fields.source_ranges
    ports: list[WireServicePort] | None = None
    internal_traffic_policy: str | None = None
    external_traffic_policy: str | None = None
    traffic_distribution: str | None = None
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


class WireService(Whole, kw_only=True):
    spec: WireServiceSpec
    status: WireServiceStatus | None = None

    def to_model(self, namespace: str, remarks: Remarks) -> Service:
        """The record of this object. Raises InvalidField."""
        spec = self.spec
        kind = fields.choice("spec.type", spec.type, _TYPES, _TYPES[0], remarks)
        external = fields.addresses("spec.externalIPs", spec.external_ips, remarks)
        reachable = kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and external)
        internal_local, external_local = _policies(spec, remarks)
        return Service(
            key=_key(self.metadata, namespace),
            type=intern(kind),
            cluster_ips=_cluster_ips(spec, remarks),
            external_ips=external,
            ingress_ips=_ingress_ips(self.status, remarks),
            source_ranges=fields.source_ranges(
                "spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges, remarks
            ),
            ports=fields.good(spec.ports, _service_port, remarks),
            internal_local=internal_local,
            external_local=bool(reachable) and external_local,
            affinity_seconds=_affinity(spec, remarks),
            health_check_node_port=spec.health_check_node_port or 0,
            left_alone=_left_alone(self.metadata, spec, kind),
            seniority=fields.seniority(
                "metadata", self.metadata.creation_timestamp, self.metadata.uid, remarks
            ),
            balancing=balancing.balancing(self.metadata.annotations, remarks),
        )


class WireSlicePort(Wire):
    needed: ClassVar[frozenset[str]] = frozenset({"name", "protocol", "port"})

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
    zone: str | None = None
    hints: WireHints | None = None


class SliceAnnotations(Annotations):
    """Those of a slice: besides, when the change was made that it comes from."""

    triggered: str | None = msgspec.field(
        default=None, name="endpoints.kubernetes.io/last-change-trigger-time"
    )


class SliceMetadata(Metadata):
    annotations: SliceAnnotations | None = None


class WireEndpointSlice(Whole, kw_only=True):
    metadata: SliceMetadata
    address_type: str
    endpoints: list[WireEndpoint] | None = None
    ports: list[WireSlicePort] | None = None

    def to_model(self, namespace: str, remarks: Remarks) -> EndpointSlice:
        """The record of this object. Raises InvalidField."""
        family = _SLICE_FAMILIES.get(self.address_type)
        if family is None:  # of the future: as unusable as host names
            family = 0
            message = f"{self.address_type!r} is not IPv4, IPv6 or FQDN"
            remarks.add(InvalidField("addressType", message))
        key = _key(self.metadata, namespace)
        labels = self.metadata.labels or {}
        service = labels.get(SERVICE_NAME_LABEL)
        if PROXY_NAME_LABEL in labels or HEADLESS_LABEL in labels:
            service = None
        usable = self.endpoints if family in FAMILIES else None
        annotations = self.metadata.annotations
        weight = balancing.weight(annotations, remarks)
        return EndpointSlice(
            key=key,
            service=ObjectKey(key.namespace, service) if service else None,
            family=family,
            ports=fields.good(self.ports, _slice_port, remarks),
            endpoints=_endpoints(usable, family, weight, remarks),
            triggered=fields.moment(annotations.triggered) if annotations else 0.0,
        )


def _key(metadata: Metadata, namespace: str) -> ObjectKey:
    return fields.identity(metadata.name, metadata.namespace or namespace)


def _service_port(index: int, port: WireServicePort) -> ServicePort:
    protocol = fields.protocol(f"spec.ports[{index}]", port.protocol)
    return ServicePort(intern(port.name or ""), protocol, port.port, port.node_port or 0)


def _slice_port(index: int, port: WireSlicePort) -> SlicePort | None:
    """None without a number: it stands for all ports, which no proxy can use."""
    if port.port is None:
        return None
    protocol = fields.protocol(f"ports[{index}]", port.protocol)
    return SlicePort(intern(port.name or ""), protocol, port.port)


def _policies(spec: WireServiceSpec, remarks: Remarks) -> tuple[bool, bool]:
    """Whether internal and external traffic stay on the node."""
    # Where traffic prefers to go arrives as hints of endpoints; its name is only looked at.
    distribution = spec.traffic_distribution
    if distribution and distribution not in _DISTRIBUTIONS:
        message = f"{distribution!r} is none of {', '.join(_DISTRIBUTIONS)}"
        remarks.add(InvalidField("spec.trafficDistribution", message))
    internal, external = (
        fields.choice(f"spec.{name}", text, _POLICIES, _POLICIES[0], remarks)
        for name, text in (
            ("internalTrafficPolicy", spec.internal_traffic_policy),
            ("externalTrafficPolicy", spec.external_traffic_policy),
        )
    )
    return internal == "Local", external == "Local"


def _cluster_ips(spec: WireServiceSpec, remarks: Remarks) -> tuple[bytes, ...]:
    """clusterIPs, or the clusterIP of an object from before there was a list."""
    texts = [text for text in spec.cluster_ips or () if text]
    if "None" in (spec.cluster_ip, *texts):
        return ()
    found = fields.addresses("spec.clusterIPs", texts, remarks)
    if found or not spec.cluster_ip:
        return found
    return fields.addresses("spec.clusterIP", [spec.cluster_ip], Remarks() if texts else remarks)


def _ingress_ips(status: WireServiceStatus | None, remarks: Remarks) -> tuple[bytes, ...]:
    balancer = status.load_balancer if status else None

    def read(i: int, ingress: WireIngress) -> bytes | None:
        if not ingress.ip or ingress.ip_mode == "Proxy":
            return None
        return fields.address(f"status.loadBalancer.ingress[{i}].ip", ingress.ip)

    return fields.good(balancer.ingress if balancer else None, read, remarks)


def _affinity(spec: WireServiceSpec, remarks: Remarks) -> int:
    known = ("None", "ClientIP")
    found = fields.choice("spec.sessionAffinity", spec.session_affinity, known, "None", remarks)
    if found == "None":
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


def _endpoints(
    endpoints: list[WireEndpoint] | None, family: int, weight: int, remarks: Remarks
) -> tuple[SliceEndpoint, ...]:
    def read(index: int, endpoint: WireEndpoint) -> SliceEndpoint:
        address = _plain_address(endpoint.addresses, family) or _first_address(
            f"endpoints[{index}].addresses", endpoint.addresses, family, remarks
        )
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
            zone=intern(endpoint.zone) if endpoint.zone else "",
            weight=weight,
        )

    return fields.good(endpoints, read, remarks)


def _plain_address(texts: list[str], family: int) -> bytes | None:
    """The first, if there is nothing to say of it: without a path, which nearly no endpoint of a
    hundred thousand needs."""
    try:
        found = parse_address(texts[0])
    except (ValueError, IndexError):
        return None
    return found if is_plain(found, family) else None


def _first_address(path: str, texts: list[str], family: int, remarks: Remarks) -> bytes:
    """Only the first counts: the API calls the others interchangeable with it, so that the next
    one can stand in for one that is wrong. An endpoint on the node's own loopback, say, would give
    whoever writes slices the node's own servers."""
    faults = []
    for i, text in enumerate(texts):
        try:
            found = fields.address(f"{path}[{i}]", text)
        except InvalidField as error:
            faults.append(error)
            continue
        special = special_use(found)
        if family_of(found) == family and not special:
            for fault in faults:
                remarks.add(fault)
            return found
        what = f"a {special} address" if special else f"not an IPv{family} address"
        faults.append(InvalidField(f"{path}[{i}]", f"{text} is {what}"))
    raise faults[0] if faults else InvalidField(path, "is empty")


@lru_cache(maxsize=8192)
def _shared_hints(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hints:
    """One record for all endpoints with the same hints: there are few zones and many endpoints."""
    return Hints(tuple(intern(z) for z in zones), tuple(intern(n) for n in nodes))
