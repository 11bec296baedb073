"""`lbctl explain` against the programs: the same verdict and endpoints, from everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest

from lbctl.addresses import parse_address, parse_prefix
from lbctl.model.balancing import WEIGHT
from lbctl.model.records import ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.why import Origin
from lbctl.trace.flows import Arrival, Flow
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from lbctl.verify.explain import explain
from tests.support import k8s_objects
from tests.support.k8s_objects import Json, as_service, as_slice, endpoint, endpoint_slice

pytestmark = pytest.mark.kernel

SAMPLES = 60
NODE = NodeFacts(
    "worker-1",
    zone="zone-a",
    addresses=(parse_address("192.168.0.2"),),
    primary4=parse_address("192.168.0.2"),
    nodeport_addresses=(parse_address("192.168.0.2"),),
    cluster_cidrs=(parse_prefix("10.0.0.0/16"),),
)
SOURCES: dict[Origin, tuple[str, Arrival]] = {
    Origin.POD: ("10.0.9.9", "pod"),
    Origin.NODE: ("192.168.0.2", "node"),
    Origin.OUTSIDE: ("198.51.100.9", "uplink"),
}


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


@pytest.fixture(scope="module")
def private() -> Iterator[PrivateNode]:
    largest = objects(SETS["both"], "Cluster", "Cluster")
    with PrivateNode(trace_bundle(), sizes_for([largest] * 4, NODE), NODE) as made:
        yield made


@pytest.mark.parametrize("name", [*SETS, *CLOSED])
def test_the_programs_do_what_is_explained(private: PrivateNode, name: str) -> None:
    asked = 0
    plain, closed = CLOSED.get(name, (name, []))
    for internal, external in itertools.product(("Cluster", "Local"), repeat=2):
        found = objects(SETS[plain], internal, external, closed=closed)
        private.apply([found], NODE)
        for origin, (source, arrives) in SOURCES.items():
            (port,) = explain(found, NODE, origin).ports
            for group in port.groups:
                for address in group.addresses:
                    host, _, number = address.endpoint.rpartition(":")
                    flow = Flow(
                        address.endpoint,
                        parse_address(source),
                        parse_address(host),
                        int(number),
                        found.service.ports[0].protocol,  # type: ignore[union-attr]
                        arrives,
                    )
                    (traced,) = private.ask([flow], SAMPLES)
                    used = {e.endpoint for e in group.endpoints if e.used}
                    where = f"{internal} {external} {origin} {address}"
                    assert traced.answer.verdict == group.verdict, where
                    assert set(traced.answer.backends) == used, where
                    asked += 1
    assert asked == 4 * 3 * 4
