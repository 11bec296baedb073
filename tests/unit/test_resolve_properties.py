"""Endpoint selection against a second implementation that follows the rules' words, in JSON."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from lbctl.addresses import format_address
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import Endpoint, resolve
from tests.support.drawn_slices import slices
from tests.support.k8s_objects import Json, as_service, as_slice, service

Place = tuple[str, int]


def plain_selection(slices: list[Json], node: str, zone: str) -> tuple[set[Place], set[Place]]:
    """The cluster set and the local set of port http/TCP in IPv4, one rule after the other."""
    seen: dict[Place, list[Json]] = {}
    for part in slices:
        if part["addressType"] == "IPv4":
            for target in part["ports"]:
                if target["name"] == "http" and target["protocol"] == "TCP" and "port" in target:
                    for value in part["endpoints"]:
                        seen.setdefault((value["addresses"][0], target["port"]), []).append(value)
    merged = {place: _best(values, node) for place, values in seen.items()}

    def fallback(places: dict[Place, Json]) -> tuple[dict[Place, Json], bool]:
        ready = {p: v for p, v in places.items() if _is(v, "ready", True)}
        if ready:
            return ready, True
        return {
            p: v
            for p, v in places.items()
            if _is(v, "serving", True) and _is(v, "terminating", False)
        }, False

    local, _ = fallback({p: v for p, v in merged.items() if v.get("nodeName") == node})
    cluster, ready = fallback(merged)
    if ready:
        for field, wanted in (("forNodes", node), ("forZones", zone)):
            hints = {p: {h["name"] for h in v["hints"][field]} for p, v in cluster.items()}
            here = {p for p, names in hints.items() if wanted and wanted in names}
            if all(hints.values()) and here:
                return here, set(local)
    return set(cluster), set(local)


def _is(value: Json, condition: str, unset: bool) -> bool:
    found = value["conditions"].get(condition)
    return unset if found is None else bool(found)


def _best(values: list[Json], node: str) -> Json:
    """Running beats terminating, ready beats unready, serving beats not, local beats remote."""
    best = values[0]
    for value in values[1:]:
        for better in (
            lambda v: not _is(v, "terminating", False),
            lambda v: _is(v, "ready", True),
            lambda v: _is(v, "serving", True),
            lambda v: v.get("nodeName") == node,
        ):
            if better(value) != better(best):
                best = value if better(value) else best
                break
    return best


def _places(chosen: tuple[Endpoint, ...]) -> set[Place]:
    return {(format_address(e.address), e.port) for e in chosen}


@given(slices, st.sampled_from(["zone-a", "zone-b", ""]))
@example([], "")
def test_same_sets_as_the_plain_rules(parts: list[Json], zone: str) -> None:
    node = NodeFacts(name="worker-1", zone=zone)
    (found,) = resolve(as_service(service()), [as_slice(p) for p in parts], node)
    cluster, local = plain_selection(parts, "worker-1", zone)
    assert (_places(found.cluster), _places(found.local)) == (cluster, local)
    assert len(found.cluster) == len(cluster)
    assert found.cluster == tuple(sorted(found.cluster))
    assert found.local == tuple(sorted(found.local))
    assert found.local_drop == (bool(cluster) and not local)


@given(slices, st.sampled_from(["zone-a", ""]), st.randoms(use_true_random=False))
def test_order_of_slices_and_endpoints_means_nothing(
    parts: list[Json], zone: str, random: Any
) -> None:
    """But for hints of duplicates, which the first one wins: those are left out here."""
    for part in parts:
        for value in part["endpoints"]:
            del value["hints"]
    node = NodeFacts(name="worker-1", zone=zone)
    before = resolve(as_service(service()), [as_slice(p) for p in parts], node)
    shuffled = [
        {**p, "endpoints": random.sample(p["endpoints"], len(p["endpoints"]))} for p in parts
    ]
    random.shuffle(shuffled)
    assert resolve(as_service(service()), [as_slice(p) for p in shuffled], node) == before
