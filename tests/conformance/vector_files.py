"""The vectors: where they are, and which of their flows this version answers."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lbctl.addresses import parse_address

Json = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LBCTL_CONFORMANCE", _ROOT.parent / "shared" / "conformance"))
OURS = Path(__file__).parent / "vectors"


class Case(NamedTuple):
    """One case of a file."""

    file: str
    node: Json
    steps: list[Json]
    name: str


def read(file: Path) -> list[Case]:
    """The cases of one file."""
    cases = msgspec.json.decode(file.read_bytes(), type=list[Json])
    return [Case(file.stem, c["node"], c["steps"], c["name"]) for c in cases]


def shared_cases() -> list[Case]:
    """Those beside the repository, which may be absent."""
    return [case for file in sorted(SHARED.glob("*.json")) for case in read(file)]


def own_cases() -> list[Case]:
    """Those of this repository."""
    return [case for file in sorted(OURS.glob("*.json")) for case in read(file)]


def kind_of(case: Case, step: Json, flow: Json) -> str:
    """What a flow is about: `pod to ClusterIP` is answered now, the other kinds are not yet."""
    source = _source(case.node, flow["source_ip"])
    destination = parse_address(flow["dest_ip"])
    if destination in _cluster_ips(step):
        return f"{source} to ClusterIP"
    if destination in _external(case):
        return f"{source} to external"
    # Nobody's address, or a ClusterIP that is gone: what a pod sends there must pass or be dropped
    # as if it were one.
    return f"{source} to ClusterIP" if source == "pod" else f"{source} to nobody"


def answered_now(case: Case, step: Json, flow: Json) -> bool:
    """The flows under test: from a pod, to a service's ClusterIP or to nobody's address."""
    return kind_of(case, step, flow) == "pod to ClusterIP"


def selected(cases: list[Case]) -> Iterator[tuple[Case, int, list[Json]]]:
    """(case, number of step, flows answered now), steps without any left out."""
    for case in cases:
        for number, step in enumerate(case.steps):
            flows = [flow for flow in step["flows"] if answered_now(case, step, flow)]
            if flows:
                yield case, number, flows


def _source(node: Json, address: str) -> str:
    if address in {*node["internal_ips"], *node.get("local_ips", ())}:
        return "node"
    pods = node["cluster_cidr"]
    networks = [ipaddress.ip_network(part) for part in pods.split(",")] if pods else []
    return "pod" if any(ipaddress.ip_address(address) in n for n in networks) else "outside"


def _services(step: Json) -> list[Json]:
    return [value for value in step["objects"] if value["kind"] == "Service"]


def _cluster_ips(step: Json) -> set[bytes]:
    specs = [service["spec"] for service in _services(step)]
    return _parsed(ip for s in specs for ip in (*(s.get("clusterIPs") or ()), s.get("clusterIP")))


def _external(case: Case) -> set[bytes]:
    """Node addresses, external IPs and load-balancer addresses of any step."""
    found = {*case.node["internal_ips"], *case.node.get("local_ips", ())}
    for step in case.steps:
        for service in _services(step):
            found.update(service["spec"].get("externalIPs") or ())
            balancer = (service.get("status") or {}).get("loadBalancer") or {}
            found.update(i.get("ip", "") for i in balancer.get("ingress") or ())
    return _parsed(found)


def _parsed(texts: Iterable[str | None]) -> set[bytes]:
    """Those of the texts that are addresses (a headless service has the word None)."""
    return {parse_address(text) for text in texts if text and text != "None"}
