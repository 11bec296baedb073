"""Every vector, answered from resolved ports alone: no programs, no maps.

The scope of a flow (internal, external, short circuit) is decided here, in the test, as the data
path will decide it; what is under test is which frontends exist and which endpoints they have.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbctl.addresses import (
    Prefix,
    format_endpoint,
    parse_address,
    parse_prefix,
)
from lbctl.model.records import EndpointSlice, Protocol, Service
from lbctl.resolve.endpoints import local_ready_addresses
from lbctl.resolve.node import NodeSettings
from lbctl.resolve.service import (
    Endpoint,
    Frontend,
    FrontendKind,
    NodeFacts,
    ResolvedPort,
    families_of,
    foreign_addresses,
    health_check,
    node_facts,
    resolve,
)
from tests.support.k8s_objects import Json, as_node, as_service, as_slice

ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(os.environ.get("LBCTL_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
OURS = Path(__file__).parent / "vectors"


def _cases() -> list[Any]:
    """One parameter per case; the shared ones only where they are."""
    files = sorted(OURS.glob("*.json")) + sorted(VECTORS.glob("*.json"))
    return [
        pytest.param(case, id=f"{file.stem}/{case['name']}")
        for file in files
        for case in msgspec.json.decode(file.read_bytes())
    ]


class State:
    """One step of a case, resolved for its node."""

    def __init__(self, node: Json, objects: list[Json]) -> None:
        by_kind: dict[str, list[Json]] = {"Service": [], "EndpointSlice": [], "Node": []}
        for value in objects:
            by_kind[value["kind"]].append(value)
        self.services = [as_service(v) for v in by_kind["Service"]]
        self.slices = [as_slice(v) for v in by_kind["EndpointSlice"]]
        self.node = _facts(node, by_kind["Node"])
        self.frontends: dict[tuple[bytes, int, int], tuple[Frontend, ResolvedPort]] = {}
        self.cluster_ips: set[bytes] = set()
        self.foreign = {a for s in self.services for a in foreign_addresses(s, self.node)}
        for service in self.services:
            for port in resolve(service, self.slices_of(service), self.node):
                for frontend in port.frontends:
                    self.frontends[frontend.address, frontend.port, frontend.protocol] = (
                        frontend,
                        port,
                    )
                    if FrontendKind.CLUSTER_IP & frontend.kind:
                        self.cluster_ips.add(frontend.address)

    def slices_of(self, service: Service) -> list[EndpointSlice]:
        return [s for s in self.slices if s.service == service.key]

    def answer(
        self, source: bytes, place: tuple[bytes, int, int], arrives: str
    ) -> tuple[str, list[str]]:
        """Verdict, and the backends if it is `forward`. `arrives` is empty: the source tells."""
        if place not in self.frontends:
            return self._unserved(place[0])
        frontend, port = self.frontends[place]
        if FrontendKind.SOURCE_RANGES & frontend.kind and not _inside(source, port.source_ranges):
            return "drop", []
        if FrontendKind.CLUSTER_IP & frontend.kind:
            local = port.internal_local
        else:
            outside = arrives == "uplink" if arrives else not self._from_here(source)
            local = port.external_local and outside
        endpoints: tuple[Endpoint, ...] = port.local if local else port.cluster
        if endpoints:
            return "forward", [format_endpoint(e.address, e.port) for e in endpoints]
        return ("drop" if local and port.local_drop else "reject"), []

    def _unserved(self, address: bytes) -> tuple[str, list[str]]:
        if address in self.node.addresses or address in self.foreign:
            return "pass", []
        if address in self.cluster_ips:
            return "reject", []
        return ("drop" if _inside(address, self.node.service_cidrs) else "pass"), []

    def _from_here(self, source: bytes) -> bool:
        """A pod is one of this node's, as far as the vectors do not say how it comes."""
        return source in self.node.addresses or _inside(source, self.node.cluster_cidrs)


def _inside(address: bytes, prefixes: tuple[Prefix, ...]) -> bool:
    return any(address in prefix for prefix in prefixes)


def _facts(node: Json, objects: list[Json]) -> NodeFacts:
    listed = node["nodeport_addresses"]
    pods = node["cluster_cidr"]
    settings = NodeSettings(
        cluster_cidrs=(parse_prefix(pods),) if pods else (),
        service_cidrs=tuple(parse_prefix(c) for c in node.get("service_cidrs") or ()),
        nodeport_addresses=tuple(listed) if listed is not None else None,
    )
    own = next(as_node(v) for v in objects if v["metadata"]["name"] == node["name"])
    return node_facts(
        node["name"], own, [parse_address(a) for a in node.get("local_ips", ())], settings
    )


@pytest.mark.parametrize("case", _cases())
def test_vector(case: Json) -> None:
    for number, step in enumerate(case["steps"]):
        state = State(case["node"], step["objects"])
        for flow in step["flows"]:
            place = (
                parse_address(flow["dest_ip"]),
                flow["dest_port"],
                int(Protocol[flow["protocol"]]),
            )
            source, arrives = parse_address(flow["source_ip"]), flow.get("arrives", "")
            verdict, backends = state.answer(source, place, arrives)
            expected = flow["expect"]
            where = f"step {number}, flow {flow['name']}"
            assert (verdict, sorted(backends)) == (
                expected["verdict"],
                sorted(expected["backends"]),
            ), where
            affinity = expected.get("affinity")
            if affinity and place in state.frontends:
                _, port = state.frontends[place]
                assert port.affinity_seconds == affinity["timeout_seconds"], where
        _check_health(state, step)


def _check_health(state: State, step: Json) -> None:
    ports, counts = {}, {}
    for service in state.services:
        slices = state.slices_of(service)
        found = health_check(service, slices, state.node)
        ready = local_ready_addresses(service, slices, families_of(service), state.node.name)
        if found:
            ports[str(service.key)] = found[0]
            assert found[1] == len(ready), service.key
        if ready:
            counts[str(service.key)] = len(ready)
    if "health_check_node_ports" in step:
        assert ports == step["health_check_node_ports"]
    if "local_ready_endpoints" in step:
        assert counts == step["local_ready_endpoints"]


def test_the_shared_vectors_are_there() -> None:
    """Said once, instead of 130 tests that silently do not exist."""
    if not list(VECTORS.glob("*.json")):
        pytest.skip(f"no vectors in {VECTORS}; set LBCTL_CONFORMANCE to their directory")
    assert len(_cases()) >= 130
