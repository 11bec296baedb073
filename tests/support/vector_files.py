"""The vectors: where they are, and which of their flows this version answers."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lbctl.addresses import parse_address

Json = dict[str, Any]

_ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("LBCTL_CONFORMANCE", _ROOT.parent / "shared" / "conformance"))
OURS = Path(__file__).parents[1] / "conformance" / "vectors"


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


def asked(cases: list[Case]) -> Iterator[tuple[Case, int, list[Json]]]:
    """(case, number of step, flows), steps without any left out."""
    for case in cases:
        for number, step in enumerate(case.steps):
            if step["flows"]:
                yield case, number, step["flows"]


def source_kind(node: Json, address: str) -> str:
    """pod, node or outside, as the vectors' README has it."""
    if address in {*node["internal_ips"], *node.get("local_ips", ())}:
        return "node"
    pods = node["cluster_cidr"]
    networks = [ipaddress.ip_network(part) for part in pods.split(",")] if pods else []
    return "pod" if any(ipaddress.ip_address(address) in n for n in networks) else "outside"


def must_masquerade(case: Case, step: Json, flow: Json) -> list[bool]:
    """Per expected backend of a flow that kube-proxy masquerades: whether we have to as well.

    For hairpin, and for traffic from outside to a backend on another node; else the reply comes
    back through this node anyway, and keeping the source is as good.
    """
    source = parse_address(flow["source_ip"])
    outside = source_kind(case.node, flow["source_ip"]) == "outside"
    here = set(_local_endpoints(case, step))
    hosts = [b.rpartition(":")[0].strip("[]") for b in sorted(flow["expect"]["backends"])]
    backends = [parse_address(host) for host in hosts]
    return [backend == source or (outside and backend not in here) for backend in backends]


def _local_endpoints(case: Case, step: Json) -> Iterator[bytes]:
    for value in step["objects"]:
        for endpoint in value.get("endpoints") or ():
            if endpoint.get("nodeName") == case.node["name"]:
                yield from (parse_address(a) for a in endpoint["addresses"])


def may_go_whole(case: Case, step: Json, flow: Json) -> bool:
    """Whether DSR has a say: it came by an uplink, and called no ClusterIP."""
    kind = {"outside": "uplink"}.get(source_kind(case.node, flow["source_ip"]), "")
    if flow.get("arrives", kind) != "uplink":
        return False
    specs = [value["spec"] for value in step["objects"] if value["kind"] == "Service"]
    called = [{spec.get("clusterIP"), *(spec.get("clusterIPs") or ())} for spec in specs]
    return flow["dest_ip"] not in set().union(*called)
