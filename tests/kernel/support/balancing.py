"""How a service of the world's chooses, written as the agent writes it; and whom it chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from lbctl.datapath.regions import region_of, region_word, table_places
from lbctl.plan import maglev, shares
from tests.kernel.support import model
from tests.kernel.support.conversation import PORT, SERVICE, Conversation
from tests.kernel.support.packets import Shape
from tests.kernel.support.world import Endpoint, Service, World

FLAT = 40  # chi-square that five degrees of freedom exceed once in ten million times


def endpoints(family: int, count: int = 6) -> list[Endpoint]:
    text = "10.2.0.%d" if family == 4 else "fd00:2::%d"
    return [(text % number, 8000) for number in range(1, count + 1)]


def serve(world: World, shape: Shape, count: int = 6, algorithm: str = "random") -> Service:
    """A service of so many endpoints that chooses by an algorithm."""
    made = world.add_service(
        SERVICE[shape.family], PORT, shape.protocol, endpoints(shape.family, count)
    )
    choose_by(world, made, algorithm)
    return made


def choose_by(world: World, service: Service, algorithm: str) -> None:
    record = world.array("services").records[service.id : service.id + 1]
    record["algorithm"] = world.flag(f"ALGORITHM_{algorithm.upper().replace('-', '_')}")
    record["flags"] |= world.flag("SERVICE_CHOOSES")
    if algorithm == "maglev":
        record["flags"] |= world.flag("SERVICE_PICKS_UP")
    if algorithm in ("maglev", "source-hash"):
        tabulate(world, service, {})


def tabulate(world: World, service: Service, weights: Mapping[Endpoint, int]) -> None:
    """The table of the cluster set, at the map's beginning."""
    members = sorted(service.backends)
    size = maglev.size_for(len(members))
    identities = [f"{address} {port}".encode() for address, port in members]
    chosen = maglev.table(identities, [weights.get(m, 100) for m in members], size)
    places = table_places(world.array("hash_tables").records)
    places[:size] = np.array([service.backends[member] for member in members])[chosen]
    word = region_word(0, size)
    world.array("services").store_word(service.id, "cluster_table", word)


def weigh(world: World, service: Service, weights: Mapping[Endpoint, int], near: int = 0) -> None:
    """Weights of all endpoints, and how many of the first are near."""
    base, length = region_of(int(world.array("services").records["cluster"][service.id]))
    order = list(service.backends)
    shape = shares.shape(np.array([weights.get(e, 100) for e in order], float), near)
    slots = world.array("slots").records[base : base + length]
    slots["share"], slots["other"] = shape
    for endpoint, number in service.backends.items():
        world.array("backends").records["weight"][number] = weights.get(endpoint, 100)


def near_first(world: World, service: Service, near: int, spill_over: float) -> None:
    """The first `near` endpoints come before the others."""
    record = world.array("services").records[service.id : service.id + 1]
    record["flags"] |= world.flag("SERVICE_CHOOSES")
    record["near"], record["spill_over"] = near, round(spill_over * world.flag("SPILL_UNIT"))


def tables(world: World) -> Any:
    """Its arrays, by name."""
    names = ("services", "slots", "backends", "backend_live", "hash_tables")
    return SimpleNamespace(**{name: world.array(name) for name in names})


def set_live(world: World, service: Service, flows: Mapping[Endpoint, int]) -> None:
    for endpoint, count in flows.items():
        world.array("backend_live").records[service.backends[endpoint]] = count


def chosen(
    world: World, shape: Shape, service: Service, ports: Iterable[int], clients: Sequence[str]
) -> list[str]:
    """Who gets each of these new flows: every port of the first client, then of the next."""
    first = Conversation(world, shape, service, client=clients[0]).request()
    frames = [model.rewrite(first, sport=p, src=client) for client in clients for p in ports]
    by_bytes = {model.packed(address): address for address, _ in service.backends}
    return [by_bytes[model.tuple_of(f).dst] for _, f in world.run_many("entry_from_pod", frames)]


def chi_square(seen: Counter[str], weights: Mapping[str, float]) -> float:
    """How far it is from what the weights ask for."""
    total, count = sum(weights.values()), sum(seen.values())
    assert not seen.keys() - {address for address, weight in weights.items() if weight}
    return sum(
        (seen[address] - count * weight / total) ** 2 / (count * weight / total)
        for address, weight in weights.items()
        if weight
    )
