"""Asking the programs what the vectors ask, and whether the answer fits: in every mode that a
configuration can make the default."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import msgspec
from click.testing import CliRunner

from ebpf.maps.sizes import Sizes
from lbctl.addresses import parse_address
from lbctl.cli.trace import command
from lbctl.config.agentconfig import API_VERSION, KIND
from lbctl.model.records import Protocol, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.sources.documents import load_manifests
from lbctl.trace import situation
from lbctl.trace.asking import Answer
from lbctl.trace.flows import Flow
from lbctl.trace.private import PrivateNode, sizes_for
from lbctl.trace.programs import trace_bundle
from tests.support.vector_files import Case, Json, asked, may_go_whole, must_masquerade

# With seven backends, the most of any vector, one is missed once in 10**12 questions.
SAMPLES = 200


class Mode(msgspec.Struct, frozen=True):
    """What the agent's configuration says of services that say nothing."""

    algorithm: str = "random"
    forwarding: str = "snat"

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.forwarding}"


USUAL = Mode()
MODES = (
    Mode(forwarding="dsr"),
    Mode("round-robin"),
    Mode("least-connections"),
    Mode("maglev"),
    Mode("source-hash"),
    Mode("least-connections", "dsr"),
    Mode("maglev", "dsr"),
)


def check_by_command(cases: Iterable[Case], directory: Path, mode: Mode = USUAL) -> None:
    """Every step on maps of its own, through the command line; all faults are told at once."""
    wrong = []
    for case, number, flows in asked(list(cases)):
        answers = _trace(case, number, flows, directory, mode)
        wrong += differences(case, number, f"step {number}", flows, answers, mode)
    assert not wrong, "\n".join(wrong)


def _trace(case: Case, number: int, flows: list[Json], directory: Path, mode: Mode) -> list[Answer]:
    node = case.node
    objects, file = directory / "objects.json", directory / "flows.json"
    objects.write_bytes(_list_of(case.steps[number]))
    file.write_bytes(msgspec.json.encode([{**flow, "expect": None} for flow in flows]))
    config = _write_configuration(node, directory, mode)
    arguments = ["--manifests", str(objects), "--node-name", node["name"], "--config", str(config)]
    for address in node.get("local_ips", ()):
        arguments += ["--local-ip", address]
    for cidr in node.get("service_cidrs", ()):
        arguments += ["--service-cidr", cidr]
    arguments += ["--flows", str(file), "--samples", str(SAMPLES), "-o", "json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout, type=list[Answer])


def check_on_one_node(cases: Iterable[Case], directory: Path, mode: Mode = USUAL) -> int:
    """Each step, and each case, as a change to the last one's maps, as the agent does it: as on new
    maps. Returns how many flows were asked about."""
    wrong, count = [], 0
    cases = list(cases)
    wanted = {(c.file, c.name, number): flows for c, number, flows in asked(cases)}
    by_case = [[state(case, step, directory, mode) for step in case.steps] for case in cases]
    # Programs are loaded once, which takes longer than all that is asked.
    room = room_for(list(itertools.chain(*by_case)))
    with PrivateNode(trace_bundle(), room, by_case[0][0][1]) as node:
        for case, states in zip(cases, by_case, strict=True):
            for number, now in enumerate(states):
                node.apply(*now)
                flows = wanted.get((case.file, case.name, number), [])
                traced = node.ask([flow_of(flow) for flow in flows], SAMPLES)
                answers = [t.answer for t in traced]
                wrong += differences(case, number, f"live step {number}", flows, answers, mode)
                count += len(flows)
    assert not wrong, "\n".join(wrong)
    return count


State = tuple[list[ServiceObjects], NodeFacts]


def room_for(states: list[State]) -> Sizes:
    """For all of them: what one leaves rests for a while before others have it."""
    sizes = [sizes_for(*state) for state in states]
    return Sizes(sum(s.services for s in sizes), sum(s.endpoints for s in sizes), sizes[0].flows)


def state(case: Case, step: Json, directory: Path, mode: Mode = USUAL) -> State:
    """A step's objects, and what its node is by them and its configuration."""
    file, node = directory / "step.json", case.node
    file.write_bytes(_list_of(step))
    objects = load_manifests(file)
    facts = situation.node(
        objects.nodes,
        node["name"],
        _write_configuration(node, directory, mode),
        node.get("local_ips", ()),
        node.get("service_cidrs", ()),
        lambda text: None,
    )
    return list(objects.services.values()), facts


def flow_of(flow: Json) -> Flow:
    return Flow(
        flow["name"],
        parse_address(flow["source_ip"]),
        parse_address(flow["dest_ip"]),
        flow["dest_port"],
        Protocol[flow["protocol"]],
        flow.get("arrives"),
    )


def _list_of(step: Json) -> bytes:
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": step["objects"]})


def _write_configuration(node: Json, directory: Path, mode: Mode) -> Path:
    """The kube-proxy configuration that a vector's node stands for, and the mode's beside it."""
    kube_proxy = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": node["cluster_cidr"] or "",
        "nodePortAddresses": node["nodeport_addresses"],
        "nftables": {"masqueradeAll": node.get("masquerade_all", False)},
    }
    ours = {"apiVersion": API_VERSION, "kind": KIND, **msgspec.structs.asdict(mode)}
    documents = [kube_proxy] if mode == USUAL else [kube_proxy, ours]
    file = directory / "config.yaml"
    file.write_bytes(b"\n---\n".join(map(msgspec.json.encode, documents)))
    return file


def differences(
    case: Case, number: int, where: str, flows: list[Json], answers: list[Answer], mode: Mode
) -> list[str]:
    """A line for each answer that is not what its vector says."""
    assert [a.name for a in answers] == [flow["name"] for flow in flows]
    return [
        f"{case.file}/{case.name} {where}, {answer.name}: {answer}, expected {flow['expect']}"
        for flow, answer in zip(flows, answers, strict=True)
        if not _fits(case, case.steps[number], flow, answer, mode)
    ]


def _fits(case: Case, step: Json, flow: Json, answer: Answer, mode: Mode) -> bool:
    """Verdict and backends exactly; masquerade where the README demands one answer, and with DSR
    that a client from outside is seen as it is."""
    expected = flow["expect"]
    backends = sorted(expected["backends"])
    chosen = list(answer.backends)
    if mode.algorithm == "source-hash":  # goes by the client, which is one
        right = len(chosen) == min(1, len(backends)) and set(chosen) <= set(backends)
    else:
        right = chosen == backends
    if not right or answer.verdict != expected["verdict"]:
        return False
    if not expected.get("masquerade", answer.masquerade):
        return answer.masquerade is False
    needs = dict(zip(backends, must_masquerade(case, step, flow), strict=True))
    must = [needs[backend] for backend in chosen]
    if mode.forwarding == "dsr" and may_go_whole(case, step, flow):
        return answer.masquerade is False
    if any(must):
        return answer.masquerade is True if all(must) else answer.masquerade in (True, "mixed")
    return True
