"""What annotations say of the choice of endpoints, right and wrong, and what a node makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbctl.model import balancing
from lbctl.model.decode import SERVICES, SLICES
from lbctl.model.fields import Remarks
from lbctl.model.records import ALGORITHMS, DEFAULT_WEIGHT, PLAIN, Balancing, EndpointSlice
from lbctl.resolve.balancing import settled
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import AT_RANDOM, Choice
from lbctl.resolve.service import resolve
from tests.support.k8s_objects import endpoint, endpoint_slice, service

NAMES = [
    balancing.ALGORITHM,
    balancing.SLOW_START,
    balancing.NEAR,
    balancing.SPILL_OVER,
    balancing.FLOWS_LEAVE,
    balancing.CILIUM_ALGORITHM,
    balancing.KUBE_ROUTER_SCHEDULER,
    balancing.FORWARDING,
    balancing.CILIUM_FORWARDING,
    balancing.KUBE_ROUTER_DSR,
]


def slice_of(addresses: list[str]) -> Any:
    return endpoint_slice(endpoints=[endpoint(address) for address in addresses])


def said(annotations: Any) -> tuple[Balancing, str]:
    value = service()
    value["metadata"]["annotations"] = annotations
    remarks = Remarks()
    return SERVICES.decode(json.dumps(value).encode(), remarks=remarks).balancing, str(remarks)


def weights(annotations: Any) -> tuple[set[int], str]:
    value = slice_of(["10.0.0.1", "10.0.0.2"])
    value["metadata"]["annotations"] = annotations
    remarks = Remarks()
    found: EndpointSlice = SLICES.decode(json.dumps(value).encode(), remarks=remarks)
    return {endpoint.weight for endpoint in found.endpoints}, str(remarks)


@pytest.mark.parametrize(
    ("annotations", "found"),
    [
        *(({"lbctl/algorithm": word}, Balancing(algorithm=word)) for word in ALGORITHMS),
        ({"lbctl/slow-start": "1m30s"}, Balancing(slow_start=90.0)),
        ({"lbctl/near": "node"}, Balancing(near="node")),
        ({"lbctl/near": " zone "}, Balancing(near="zone")),
        ({"lbctl/spill-over": "1.5"}, Balancing(spill_over=1.5)),
        ({"lbctl/flows-leave": "reset"}, Balancing(flows_leave=0.0)),
        ({"lbctl/flows-leave": "5m"}, Balancing(flows_leave=300.0)),
        ({"lbctl/flows-leave": "kept"}, PLAIN),
        ({"service.cilium.io/lb-algorithm": "maglev"}, Balancing(algorithm="maglev")),
        ({"kube-router.io/service.scheduler": "sh"}, Balancing(algorithm="source-hash")),
        (
            {"lbctl/algorithm": "random", "service.cilium.io/lb-algorithm": "maglev"},
            Balancing(algorithm="random"),
        ),
        (
            {"service.cilium.io/lb-algorithm": "random", "kube-router.io/service.scheduler": "rr"},
            Balancing(algorithm="random"),
        ),
        ({"lbctl/forwarding": "dsr"}, Balancing(forwarding="dsr")),
        ({"lbctl/forwarding": "snat"}, Balancing(forwarding="snat")),
        ({"service.cilium.io/forwarding-mode": "dsr"}, Balancing(forwarding="dsr")),
        ({"kube-router.io/service.dsr": "tunnel"}, Balancing(forwarding="dsr")),
        (
            {"lbctl/forwarding": "snat", "kube-router.io/service.dsr": "tunnel"},
            Balancing(forwarding="snat"),
        ),
        ({"somebody/else": "x" * 9000}, PLAIN),
        ({}, PLAIN),
        (None, PLAIN),
    ],
)
def test_what_a_service_says(annotations: Any, found: Balancing) -> None:
    assert said(annotations) == (found, "")


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({"lbctl/algorithm": "fastest"}, "'fastest' is none of random, round-robin"),
        # Ours counts, though it is wrong: nobody meant the other one any more.
        (
            {"lbctl/algorithm": "", "service.cilium.io/lb-algorithm": "maglev"},
            "annotations[lbctl/algorithm]: '' is none of",
        ),
        ({"service.cilium.io/lb-algorithm": "rr"}, "'rr' is none of random, maglev"),
        ({"kube-router.io/service.scheduler": "dh"}, "'dh' is none of rr, wrr"),
        ({"lbctl/slow-start": "30"}, "'30' is not a duration"),
        ({"lbctl/slow-start": "-30s"}, "'-30s' is not a duration"),
        ({"lbctl/slow-start": "61m"}, "longer than an hour"),
        ({"lbctl/near": "rack"}, "'rack' is none of node, zone"),
        ({"lbctl/spill-over": "0.5"}, "'0.5' is not from 1 to 1000"),
        ({"lbctl/spill-over": "inf"}, "'inf' is not a number"),
        ({"lbctl/spill-over": "nan"}, "'nan' is not a number"),
        ({"lbctl/spill-over": "1_0"}, "'1_0' is not a number"),
        ({"lbctl/spill-over": "1e3"}, "'1e3' is not a number"),
        ({"lbctl/flows-leave": "soon"}, "'soon' is not kept, reset or a duration"),
        ({"lbctl/forwarding": "DSR"}, "'DSR' is none of snat, dsr"),
        ({"service.cilium.io/forwarding-mode": "hybrid"}, "'hybrid' is none of snat, dsr"),
        ({"kube-router.io/service.dsr": "true"}, "'true' is none of tunnel"),
        ({"lbctl/algorithm": 5}, "expected str | null, got int"),
        ({"lbctl/algorithm": ["maglev"]}, "expected str | null, got array"),
        (7, "metadata.annotations: expected object | null, got int"),
    ],
)
def test_a_wrong_value_is_said_and_the_default_used(annotations: Any, why: str) -> None:
    found, remark = said(annotations)
    assert found == PLAIN
    assert why in remark


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), st.text() | st.none() | st.integers()))
def test_no_value_costs_the_service(annotations: dict[str, Any]) -> None:
    found, _ = said(annotations)
    assert found.algorithm is None or found.algorithm in ALGORITHMS
    assert 0 <= found.slow_start <= 3600
    assert 1 <= found.spill_over <= 1000
    assert found.near in ("", "node", "zone")
    assert found.flows_leave is None or found.flows_leave >= 0
    assert found.forwarding in (None, "snat", "dsr")


def test_one_wrong_value_leaves_the_others() -> None:
    found, remark = said({"lbctl/algorithm": "fastest", "lbctl/near": "node", "lbctl/weight": "x"})
    assert found == Balancing(near="node")
    assert "fastest" in remark


@pytest.mark.parametrize(
    ("annotations", "weight", "why"),
    [
        ({"lbctl/weight": "0"}, 0, ""),
        ({"lbctl/weight": "65535"}, 65535, ""),
        ({"service.cilium.io/weight": "7"}, 7, ""),
        ({"lbctl/weight": "3", "service.cilium.io/weight": "7"}, 3, ""),
        ({}, DEFAULT_WEIGHT, ""),
        ({"lbctl/weight": "65536"}, DEFAULT_WEIGHT, "not a whole number from 0 to 65535"),
        ({"lbctl/weight": "-1"}, DEFAULT_WEIGHT, "'-1' is not"),
        ({"lbctl/weight": "1.5"}, DEFAULT_WEIGHT, "'1.5' is not"),
        ({"lbctl/weight": "٣"}, DEFAULT_WEIGHT, "is not a whole number"),
        ({"lbctl/weight": "9" * 5000}, DEFAULT_WEIGHT, "is not a whole number"),
        ({"lbctl/weight": 50}, DEFAULT_WEIGHT, "expected str | null, got int"),
    ],
)
def test_the_weight_of_a_slice(annotations: Any, weight: int, why: str) -> None:
    found, remark = weights(annotations)
    assert found == {weight}
    assert why in remark
    assert bool(remark) == bool(why)


# What a node makes of it.


def test_the_clusters_default_is_for_those_that_say_nothing() -> None:
    node = NodeFacts("n", algorithm="least-connections")
    assert settled(PLAIN, node)[0].algorithm == "least-connections"
    assert settled(Balancing(algorithm="random"), node)[0].algorithm == "random"
    assert settled(PLAIN, NodeFacts("n")) == (AT_RANDOM, "", ())


def test_the_way_is_the_clusters_where_a_service_does_not_say() -> None:
    node = NodeFacts("n", forwarding="dsr")
    assert settled(PLAIN, node)[0].dsr
    assert not settled(Balancing(forwarding="snat"), node)[0].dsr
    assert settled(Balancing("maglev", forwarding="dsr"), NodeFacts("n"))[0].dsr
    assert not settled(Balancing("maglev"), NodeFacts("n"))[0].dsr


@pytest.mark.parametrize("algorithm", ["maglev", "source-hash"])
def test_what_a_hash_leaves_no_room_for_is_said(algorithm: Any) -> None:
    said_ = Balancing(algorithm, slow_start=30.0, near="node", flows_leave=0.0)
    choice, near, unfit = settled(said_, NodeFacts("n"))
    assert (choice, near) == (Choice(algorithm, flows_leave=0.0), "")
    assert [text.partition(" ")[0] for text in unfit] == ["lbctl/slow-start", "lbctl/near"]


def test_a_node_without_a_zone_has_no_near_ones_by_zone() -> None:
    assert settled(Balancing(near="zone"), NodeFacts("n"))[1] == ""
    assert settled(Balancing(near="zone"), NodeFacts("n", zone="z"))[1] == "zone"


def test_endpoints_have_their_weight_and_are_near() -> None:
    value = service()
    value["metadata"]["annotations"] = {"lbctl/near": "zone"}
    part = slice_of(["10.0.0.1", "10.0.0.2"])
    part["metadata"]["annotations"] = {"lbctl/weight": "5"}
    part["endpoints"][0]["zone"] = "east"
    objects = SERVICES.convert(value), SLICES.convert(part)
    (port,) = resolve(objects[0], [objects[1]], NodeFacts("n", zone="east"))
    assert [(e.weight, e.near) for e in port.cluster] == [(5, True), (5, False)]
    assert port.warnings == ()
