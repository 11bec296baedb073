"""Vectors, answered by `lbctl trace`: the real programs on the maps that a step's objects make."""

from __future__ import annotations

import collections
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from ebpf.maps.sizes import Sizes
from lbctl.addresses import parse_address, parse_prefix
from lbctl.cli.trace import command
from lbctl.config import kubeproxyconfig
from lbctl.model.records import Protocol, ServiceObjects
from lbctl.resolve.node import NodeFacts, node_facts
from lbctl.sources.documents import load_manifests
from lbctl.trace.asking import Answer
from lbctl.trace.flows import Flow
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from tests.support.vector_files import (
    SHARED,
    Case,
    Json,
    asked,
    must_masquerade,
    own_cases,
    shared_cases,
)

# Where the shared vectors are not, their tests are skipped, in CI too: they are no part of the
# repository. Where they are, they are kernel tests like others.
needs_shared = (
    pytest.mark.kernel
    if any(SHARED.glob("*.json"))
    else pytest.mark.skip(f"no vectors in {SHARED}; LBCTL_CONFORMANCE names their directory")
)

# With seven backends, the most of any vector, one is missed once in 10**12 questions.
SAMPLES = 200

FLOWS = {
    "affinity": 16,
    "clusterip": 14,
    "externalips": 13,
    "healthcheck": 16,
    "loadbalancer": 28,
    "misc": 60,
    "nodeport": 43,
    "policies": 84,
    "terminating": 30,
    "topology": 25,
    "updates": 201,
}


@needs_shared
def test_every_flow_is_asked() -> None:
    found: collections.Counter[str] = collections.Counter()
    for case, _, flows in asked(shared_cases()):
        found[case.file] += len(flows)
    assert dict(found) == FLOWS


@needs_shared
@pytest.mark.parametrize("file", sorted(FLOWS))
def test_shared_vectors(file: str, tmp_path: Path) -> None:
    cases = [case for case in shared_cases() if case.file == file]
    _check_each_step(cases, tmp_path)


@pytest.mark.kernel
def test_own_vectors(tmp_path: Path) -> None:
    cases = own_cases()
    assert sum(len(flows) for _, _, flows in asked(cases)) >= 32
    _check_each_step(cases, tmp_path)


def _check_each_step(cases: list[Case], directory: Path) -> None:
    """Every step on maps of its own, through the command line; all faults are told at once."""
    wrong = []
    for case, number, flows in asked(cases):
        answers = _trace(case, number, flows, directory)
        wrong += _differences(case, number, f"step {number}", flows, answers)
    assert not wrong, "\n".join(wrong)


def _trace(case: Case, number: int, flows: list[Json], directory: Path) -> list[Answer]:
    node = case.node
    objects, file, config = (directory / name for name in ("objects.json", "flows.json", "c.yaml"))
    objects.write_bytes(
        msgspec.json.encode(
            {"apiVersion": "v1", "kind": "List", "items": case.steps[number]["objects"]}
        )
    )
    file.write_bytes(msgspec.json.encode([{**flow, "expect": None} for flow in flows]))
    config.write_bytes(msgspec.json.encode(_configuration(node)))
    arguments = ["--manifests", str(objects), "--node-name", node["name"], "--config", str(config)]
    for address in node.get("local_ips", ()):
        arguments += ["--local-ip", address]
    for cidr in node.get("service_cidrs", ()):
        arguments += ["--service-cidr", cidr]
    arguments += ["--flows", str(file), "--samples", str(SAMPLES), "-o", "json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout, type=list[Answer])


def _configuration(node: Json) -> Json:
    """The kube-proxy configuration that a vector's node stands for."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": node["cluster_cidr"] or "",
        "nodePortAddresses": node["nodeport_addresses"],
        "nftables": {"masqueradeAll": node.get("masquerade_all", False)},
    }


def _differences(
    case: Case, number: int, where: str, flows: list[Json], answers: list[Answer]
) -> list[str]:
    assert [a.name for a in answers] == [flow["name"] for flow in flows]
    return [
        f"{case.file}/{case.name} {where}, {answer.name}: {answer}, expected {flow['expect']}"
        for flow, answer in zip(flows, answers, strict=True)
        if not _fits(case, case.steps[number], flow, answer)
    ]


def _fits(case: Case, step: Json, flow: Json, answer: Answer) -> bool:
    """Verdict and backends exactly; masquerade where the README demands one answer."""
    expected = flow["expect"]
    if (answer.verdict, list(answer.backends)) != (
        expected["verdict"],
        sorted(expected["backends"]),
    ):
        return False
    if not expected.get("masquerade", answer.masquerade):
        return answer.masquerade is False
    must = must_masquerade(case, step, flow)
    if any(must):
        return answer.masquerade is True if all(must) else answer.masquerade in (True, "mixed")
    return True


@needs_shared
def test_shared_steps_one_after_another(tmp_path: Path) -> None:
    cases = shared_cases()
    assert any(case.file == "updates" and len(case.steps) > 1 for case in cases)
    _check_on_one_node(cases, tmp_path)


@pytest.mark.kernel
def test_own_steps_one_after_another(tmp_path: Path) -> None:
    cases = own_cases()
    assert any(len(case.steps) > 1 for case in cases)
    _check_on_one_node(cases, tmp_path)


def _check_on_one_node(cases: list[Case], tmp_path: Path) -> None:
    """Each step as a change to the last one's maps, as the agent does it: as on new maps."""
    wrong = []
    cases = [case for case in cases if len(case.steps) > 1]
    bundle = trace_bundle()
    wanted = {(c.file, c.name, number): flows for c, number, flows in asked(cases)}
    for case in cases:
        states = [_state(case, step, tmp_path) for step in case.steps]
        with PrivateNode(bundle, _room_for(states), states[0][1]) as node:
            for number, state in enumerate(states):
                node.apply(*state)
                flows = wanted.get((case.file, case.name, number), [])
                traced = node.ask([_flow(flow) for flow in flows], SAMPLES)
                answers = [t.answer for t in traced]
                wrong += _differences(case, number, f"live step {number}", flows, answers)
    assert not wrong, "\n".join(wrong)


State = tuple[list[ServiceObjects], NodeFacts]


def _room_for(states: list[State]) -> Sizes:
    sizes = [sizes_for(*state) for state in states]
    return Sizes(max(s.services for s in sizes), max(s.endpoints for s in sizes), sizes[0].flows)


def _state(case: Case, step: Json, directory: Path) -> State:
    file = directory / "step.json"
    file.write_bytes(msgspec.json.encode({"kind": "List", "items": step["objects"]}))
    objects = load_manifests(file)
    node = case.node
    settings = msgspec.structs.replace(
        kubeproxyconfig.parse(_configuration(node)).node,
        service_cidrs=tuple(map(parse_prefix, node.get("service_cidrs", ()))),
    )
    addresses = [parse_address(a) for a in node.get("local_ips", ())]
    facts = node_facts(node["name"], objects.nodes.get(node["name"]), addresses, settings)
    return list(objects.services.values()), facts


def _flow(flow: Json) -> Flow:
    return Flow(
        flow["name"],
        parse_address(flow["source_ip"]),
        parse_address(flow["dest_ip"]),
        flow["dest_port"],
        Protocol[flow["protocol"]],
    )
