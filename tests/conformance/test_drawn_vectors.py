"""Vectors that chance makes: hundreds of combinations, answered by the real programs and, for
comparison, by the plain rules. Each step follows on the maps of the last, as changes do on a node.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from lbctl.health.ports import health_ports
from tests.support import drawn_worlds
from tests.support.drawn_worlds import SOURCES
from tests.support.plain_rules import World
from tests.support.vector_asking import MODES, USUAL, Mode, check_on_one_node, state
from tests.support.vector_files import Case, Json

STEPS = 15
FLOWS = 14


def drawn(seed: int, mode: Mode = USUAL, steps: int = STEPS) -> Case:
    """A node whose objects are all different ones in every step."""
    random = Random(seed)
    node = drawn_worlds.node(random)
    return Case("drawn", node, [_step(random, node, mode) for _ in range(steps)], f"seed {seed}")


def _step(random: Random, node: Json, mode: Mode) -> Json:
    objects = drawn_worlds.objects(random)
    if mode != USUAL:  # all that says something else than the mode
        for value in objects:
            value["metadata"].get("annotations", {}).pop("lbctl/algorithm", None)
    world = World(node, objects, mode.algorithm)
    asked = [_question(random, world, objects) for _ in range(FLOWS)]
    return {
        "objects": objects,
        "flows": [_flow(world, number, *parts) for number, parts in enumerate(asked)],
        "health": world.health_checks(),
    }


Question = tuple[str, str, int, str]


def _question(random: Random, world: World, objects: list[Json]) -> Question:
    """Mostly of something that is served; sometimes beside it."""
    places = sorted(world.frontends)
    address, port, protocol = random.choice(places) if places else ("172.30.0.1", 80, "TCP")
    if random.random() < 0.2:
        address = random.choice(_addresses(objects))
    if random.random() < 0.1:
        port = random.choice([22, 81, 443])
    if random.random() < 0.1:
        protocol = random.choice(["TCP", "UDP", "SCTP"])
    family = 6 if ":" in address else 4
    endpoints = [
        value["addresses"][0]
        for part in objects
        if part.get("addressType") == f"IPv{family}"
        for value in part["endpoints"]
    ]
    source = random.choice(SOURCES[family])
    if endpoints and world.knows_pods and random.random() < 0.2:
        source = random.choice(endpoints)  # which may come back to itself
    elif random.random() < 0.05:
        source = address
    return source, address, port, protocol


def _addresses(objects: list[Json]) -> list[str]:
    """Those of services, served or not, and some that nobody has."""
    found = ["172.30.0.200", "fd00:30::200", "192.168.1.2", "fd00:168:1::2", "8.8.8.8"]
    for value in objects:
        if value["kind"] == "Service":
            spec, status = value["spec"], value.get("status", {})
            found += [ip for ip in spec.get("clusterIPs", ()) if ip != "None"]
            found += spec.get("externalIPs", [])
            ingress = status.get("loadBalancer", {}).get("ingress", ())
            found += [entry["ip"] for entry in ingress if "ip" in entry]
    return found


def _flow(world: World, number: int, source: str, address: str, port: int, protocol: str) -> Json:
    return {
        "name": f"{number}: {source} to {address} {port}/{protocol}",
        "source_ip": source,
        "dest_ip": address,
        "dest_port": port,
        "protocol": protocol,
        "expect": world.answer(source, address, port, protocol),
    }


@pytest.mark.kernel
def test_combinations(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Two nodes for each second of --soak; a fault names the seed."""
    cases = [drawn(seed) for seed in range(round(2 * pytestconfig.getoption("--soak")))]
    assert check_on_one_node(cases, tmp_path) == len(cases) * STEPS * FLOWS


@pytest.mark.kernel
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_combinations_in_modes(mode: Mode, tmp_path: Path) -> None:
    case = drawn(1000 + MODES.index(mode), mode, 4)
    assert check_on_one_node([case], tmp_path, mode) == 4 * FLOWS


@pytest.mark.parametrize("seed", range(2000, 2010))
def test_health_checks(seed: int, tmp_path: Path) -> None:
    case = drawn(seed)
    for number, step in enumerate(case.steps):
        services, facts = state(case, step, tmp_path)
        named = {objects.service.key: objects for objects in services if objects.service}
        found = {str(key): value for key, value in health_ports(named, facts).items()}
        assert found == step["health"], number
