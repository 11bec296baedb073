"""Services, endpoint slices and nodes as the control plane keeps them: small, frozen, checked.

What the API sends is described in `wire.py`, which makes these records. Addresses are parsed there,
once, and texts that repeat across objects (node names, zones, port names, namespaces) are shared:
100,000 endpoints take about 13 MB. Nothing here refers back to its owner, so no record needs the
cyclic garbage collector.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, get_args
from uuid import UUID

import msgspec

from lbctl.addresses import Prefix

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
ZONE_LABEL = "topology.kubernetes.io/zone"

# How a service's endpoints can be chosen. The first is the default.
Algorithm = Literal["random", "round-robin", "least-connections", "maglev", "source-hash"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
DEFAULT_WEIGHT = 100  # of an endpoint; 0: nothing new for it

# How traffic from outside gets to endpoints on other nodes. The first is the default.
Forwarding = Literal["snat", "dsr"]
FORWARDINGS: tuple[Forwarding, ...] = get_args(Forwarding)


class Protocol(IntEnum):
    """IP protocol numbers of what a service port can carry."""

    TCP = 6
    UDP = 17
    SCTP = 132


class ObjectKey(msgspec.Struct, frozen=True, gc=False, order=True):
    """Identity of a namespaced object of one kind."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """One entry of spec.ports."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0  # 0: none


class Balancing(msgspec.Struct, frozen=True, gc=False):
    """What a Service says of the choice of its endpoints, and of the way there
    (docs/semantics.md)."""

    algorithm: Algorithm | None = None  # None: the cluster's default
    slow_start: float = 0.0  # seconds until a new endpoint has its whole share
    near: str = ""  # node or zone: whose endpoints come first; empty: none
    spill_over: float = 2.0  # how many times as busy as the rest near ones may be
    # Seconds that flows have after their endpoint has left; None: as long as they last.
    flows_leave: float | None = None
    forwarding: Forwarding | None = None  # None: the cluster's default


PLAIN = Balancing()


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service. Address tuples hold 16-byte addresses of both families, in the object's order."""

    key: ObjectKey
    type: str  # ClusterIP, NodePort, LoadBalancer or ExternalName
    cluster_ips: tuple[bytes, ...] = ()  # empty: headless, or not assigned yet
    external_ips: tuple[bytes, ...] = ()
    ingress_ips: tuple[bytes, ...] = ()  # of the load balancer, without those of ipMode Proxy
    source_ranges: tuple[Prefix, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local, where that means something
    affinity_seconds: int = 0  # 0: none
    health_check_node_port: int = 0  # 0: none
    left_alone: str = ""  # why this proxy must not serve it; empty: serve
    # When it was made, then its uid, as bytes: the older object sorts first. Empty: nobody says.
    seniority: bytes = b""
    balancing: Balancing = PLAIN

    @property
    def uid(self) -> str:
        """What the API server calls it for good; empty where nobody says, or in another form."""
        return str(UUID(bytes=self.seniority[8:])) if len(self.seniority) == 24 else ""


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """One entry of an EndpointSlice's ports."""

    name: str
    protocol: Protocol
    port: int


class Hints(msgspec.Struct, frozen=True, gc=False):
    """Where an endpoint is meant to be used from."""

    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class SliceEndpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice, its unset conditions filled in."""

    address: bytes
    node: str  # empty: unknown, hence never local
    ready: bool
    serving: bool
    terminating: bool
    hints: Hints
    zone: str = ""  # empty: unknown
    weight: int = DEFAULT_WEIGHT


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """An EndpointSlice. One of host names has no endpoints for us."""

    key: ObjectKey
    service: ObjectKey | None  # None: of no service
    family: int  # 4, 6, or 0 for host names
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    # When the pod or service changed that this follows from, since the epoch; 0: nobody says.
    triggered: float = 0.0


class Taint(msgspec.Struct, frozen=True, gc=False):
    """A node's taint."""

    key: str
    effect: str


class Node(msgspec.Struct, frozen=True, gc=False):
    """A Node."""

    name: str
    internal_ips: tuple[bytes, ...] = ()
    external_ips: tuple[bytes, ...] = ()
    zone: str = ""  # empty: no zone label
    pod_cidrs: tuple[Prefix, ...] = ()
    taints: tuple[Taint, ...] = ()
    deleting: bool = False  # metadata.deletionTimestamp is set


class ServiceObjects(msgspec.Struct, frozen=True, gc=False):
    """Everything known about one service. `service` None: it does not exist (any more)."""

    service: Service | None
    slices: tuple[EndpointSlice, ...] = ()  # sorted by name
