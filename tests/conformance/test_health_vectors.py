"""Health-check node ports of the vectors (rule 25), on their own and as changes of a state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lbctl.addresses import parse_address
from lbctl.health.ports import HealthPorts, health_ports
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.endpoints import local_ready_addresses
from lbctl.resolve.node import NodeFacts, node_facts
from lbctl.resolve.service import families_of
from lbctl.sources.documents import load_manifests
from tests.support.vector_files import SHARED, Case, Json, own_cases, shared_cases

EXPECTED = {"health_check_node_ports", "local_ready_endpoints"}
Services = dict[ObjectKey, ServiceObjects]


def cases() -> Iterator[object]:
    for case in (*own_cases(), *shared_cases()):
        if any(EXPECTED & step.keys() for step in case.steps):
            yield pytest.param(case, id=f"{case.file}/{case.name}")


def state(case: Case, step: Json, directory: Path) -> tuple[Services, NodeFacts]:
    file = directory / "step.json"
    file.write_bytes(msgspec.json.encode({"kind": "List", "items": step["objects"]}))
    objects = load_manifests(file)
    name = case.node["name"]
    addresses = [parse_address(a) for a in case.node.get("local_ips", ())]
    return objects.services, node_facts(name, objects.nodes.get(name), addresses)


def changes(before: Services, after: Services) -> Services:
    """What a source reports when one state becomes the other."""
    gone = dict.fromkeys(before.keys() - after.keys(), ServiceObjects(None))
    return gone | {key: value for key, value in after.items() if before.get(key) != value}


def local_counts(services: Services, node: NodeFacts) -> dict[str, int]:
    """Of every service, whatever its type."""
    found = {}
    for key, (service, slices) in ((k, (o.service, o.slices)) for k, o in services.items()):
        assert service is not None
        ready = local_ready_addresses(service, slices, families_of(service), node.name)
        if ready:
            found[str(key)] = len(ready)
    return found


@pytest.mark.parametrize("case", list(cases()))
def test_ports_and_counts(case: Case, tmp_path: Path) -> None:
    live = HealthPorts()
    before: Services = {}
    for number, step in enumerate(case.steps):
        services, node = state(case, step, tmp_path)
        found = health_ports(services, node)
        live.take(changes(before, services), node)
        before = services
        assert live.ports == found, number
        if "health_check_node_ports" in step:
            ports = {str(key): port for key, (port, _) in found.items()}
            assert ports == step["health_check_node_ports"], number
        if "local_ready_endpoints" in step:
            expected = step["local_ready_endpoints"]
            assert local_counts(services, node) == expected, number
            counts = {str(key): count for key, (_, count) in found.items()}
            assert counts == {name: expected.get(name, 0) for name in counts}, number


def test_there_are_vectors() -> None:
    """Said once, instead of tests that silently do not exist."""
    if not any(SHARED.glob("*.json")):
        pytest.skip(f"no vectors in {SHARED}; LBCTL_CONFORMANCE names their directory")
    assert len(list(cases())) >= 8
