"""Sets of endpoints in all states that count, here and elsewhere, and services that have them."""

from __future__ import annotations

from collections.abc import Sequence

from lbctl.addresses import parse_address, parse_prefix
from lbctl.model.balancing import WEIGHT
from lbctl.model.records import ServiceObjects
from lbctl.resolve.node import NodeFacts
from tests.support import k8s_objects
from tests.support.k8s_objects import Json, as_service, as_slice, endpoint, endpoint_slice

NODE = NodeFacts(
    "worker-1",
    zone="zone-a",
    addresses=(parse_address("192.168.0.2"),),
    primary4=parse_address("192.168.0.2"),
    nodeport_addresses=(parse_address("192.168.0.2"),),
    cluster_cidrs=(parse_prefix("10.0.0.0/16"),),
)


def leaving(address: str, node: str = "worker-1") -> Json:
    return endpoint(address, node, ready=False, serving=True, terminating=True)


SETS: dict[str, list[Json]] = {
    "none": [],
    "here": [endpoint("10.0.0.1")],
    "elsewhere": [endpoint("10.0.1.1", "worker-2")],
    "both": [endpoint("10.0.0.1"), endpoint("10.0.1.1", "worker-2")],
    "unready here": [endpoint("10.0.0.1", ready=False), endpoint("10.0.1.1", "worker-2")],
    "leaving here": [leaving("10.0.0.1"), endpoint("10.0.1.1", "worker-2")],
    "all leave": [leaving("10.0.0.1"), leaving("10.0.1.1", "worker-2")],
    "hints": [
        endpoint("10.0.0.1", zones=["zone-a"]),
        endpoint("10.0.1.1", "worker-2", zones=["zone-b"]),
    ],
}


# Endpoints of weight 0 beside those of SETS of the first name.
CLOSED: dict[str, tuple[str, list[Json]]] = {
    "weight 0 alone": ("none", [endpoint("10.0.0.2"), endpoint("10.0.1.2", "worker-2")]),
    "weight 0 here": ("elsewhere", [endpoint("10.0.0.2")]),
    "weight 0 elsewhere": ("here", [endpoint("10.0.1.2", "worker-2")]),
}


def objects(
    listed: list[Json],
    internal: str,
    external: str,
    number: int = 0,
    closed: Sequence[Json] = (),
) -> ServiceObjects:
    """`number` makes it another service, at other addresses. `closed` have weight 0."""
    made = k8s_objects.service(
        f"svc{number}",
        cluster_ips=[f"172.30.0.{41 + number}"],
        type="LoadBalancer",
        ports=[k8s_objects.port(nodePort=30080 + number)],
        externalIPs=[f"192.0.2.{80 + number}"],
        ingress=[{"ip": f"203.0.113.{80 + number}"}],
        internalTrafficPolicy=internal,
        externalTrafficPolicy=external,
    )
    part = endpoint_slice(
        f"svc{number}-1", f"svc{number}", ports=[k8s_objects.port(8080)], endpoints=listed
    )
    rest = endpoint_slice(
        f"svc{number}-2", f"svc{number}", ports=[k8s_objects.port(8080)], endpoints=closed
    )
    rest["metadata"]["annotations"] = {WEIGHT: "0"}
    return ServiceObjects(as_service(made), (as_slice(part), as_slice(rest)))
