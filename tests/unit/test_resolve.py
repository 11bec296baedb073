"""The rules of services one by one, on objects small enough to see the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lbctl.addresses import format_address, format_endpoint, parse_address, parse_prefix
from lbctl.resolve.hints import NO_HINTS
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.service import FrontendKind, ResolvedPort, health_check, resolve
from tests.support.k8s_objects import (
    Json,
    as_service,
    as_slice,
    endpoint,
    endpoint_slice,
    port,
    service,
)

HERE = NodeFacts(
    name="worker-1",
    zone="zone-a",
    addresses=(parse_address("192.168.0.2"),),
    primary4=parse_address("192.168.0.2"),
    primary6=parse_address("fd00:1::2"),
    nodeport_addresses=(parse_address("192.168.0.2"), parse_address("fd00:1::2")),
)
READY: Json = {"ready": True}
UNREADY: Json = {"ready": False, "serving": False}
SERVING: Json = {"ready": False, "serving": True}
LEAVING: Json = {"ready": False, "serving": True, "terminating": True}
DYING: Json = {"ready": False, "serving": False, "terminating": True}


def resolved(value: Json, *slices: Json, node: NodeFacts = HERE) -> tuple[ResolvedPort, ...]:
    return resolve(as_service(value), [as_slice(s) for s in slices], node)


def only(value: Json, *slices: Json, node: NodeFacts = HERE) -> ResolvedPort:
    (found,) = resolved(value, *slices, node=node)
    return found


def places(found: ResolvedPort) -> dict[str, int]:
    return {format_endpoint(f.address, f.port): f.kind for f in found.frontends}


def test_frontend_kinds_are_those_of_the_programs() -> None:
    header = (Path(__file__).parents[2] / "bpf_src" / "consts.h").read_text()
    body = re.search(r"enum frontend_flag \{(.*?)\};", header, re.DOTALL)
    assert body is not None
    flags = {n: int(v) for n, v in re.findall(r"FRONTEND_(\w+) = (\d+)", body[1])}
    assert flags == {name: kind for name, kind in vars(FrontendKind).items() if name.isupper()}


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ([], "", ""),
        ([("1", "here", READY), ("2", "there", READY)], "12", "1"),
        ([("1", "here", {}), ("2", None, {})], "12", "1"),
        ([("1", "here", UNREADY), ("2", "there", READY)], "2", ""),
        ([("1", "here", LEAVING), ("2", "there", READY)], "2", "1"),  # sets fall back apart
        ([("1", "here", READY), ("2", "there", LEAVING)], "1", "1"),
        ([("1", "here", LEAVING), ("2", "there", LEAVING)], "12", "1"),
        ([("1", "here", SERVING), ("2", "there", SERVING)], "", ""),
        ([("1", "here", DYING), ("2", "there", LEAVING)], "2", ""),
        ([("1", "here", {"terminating": True})], "1", "1"),
        ([("9", "here", READY), ("10", "here", READY)], "9 10", "9 10"),  # by address, not text
    ],
)
def test_endpoint_sets(
    endpoints: list[tuple[str, str | None, Json]], cluster: str, local: str
) -> None:
    names = {"here": "worker-1", "there": "worker-2", None: None}
    listed = [endpoint(f"10.0.0.{a}", names[n], **c) for a, n, c in endpoints]
    found = only(service(), endpoint_slice(endpoints=listed))
    for chosen, expected in zip((found.cluster, found.local), (cluster, local), strict=True):
        wanted = expected.split() if " " in expected else list(expected)
        assert [str(e.address[-1]) for e in chosen] == wanted
    assert all(e.local == (e in found.local) for e in found.cluster if found.local)
    assert found.local_drop == (bool(found.cluster) and not found.local)


def test_order_is_by_address_and_port_whatever_the_order_of_slices() -> None:
    parts = [
        endpoint_slice("b", endpoints=[endpoint("10.0.0.3"), endpoint("10.0.0.1")]),
        endpoint_slice("a", endpoints=[endpoint("10.0.0.2")]),
        endpoint_slice("c", endpoints=[endpoint("10.0.0.1")], ports=[port(79)]),
    ]
    one, two = only(service(), *parts), only(service(), *reversed(parts))
    assert one == two
    assert [(e.address[-1], e.port) for e in one.cluster] == [(1, 79), (1, 80), (2, 80), (3, 80)]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("better", "worse", "usable"),
    [
        (READY, LEAVING, True),
        (UNREADY, LEAVING, False),  # running, though unready: the address is another pod's now
        (READY, UNREADY, True),
        (LEAVING, DYING, True),
    ],
)
def test_one_place_in_two_slices_counts_once(
    better: Json, worse: Json, usable: bool, swap: bool
) -> None:
    first, second = (worse, better) if swap else (better, worse)
    found = only(
        service(),
        endpoint_slice("a", endpoints=[endpoint("10.0.0.1", **first)]),
        endpoint_slice("b", endpoints=[endpoint("10.0.0.1", **second)]),
    )
    assert len(found.cluster) == usable


@pytest.mark.parametrize("swap", [False, True])
def test_where_slices_disagree_on_the_node_local_wins(swap: bool) -> None:
    nodes = ["worker-1", "worker-2"]
    found = only(
        service(),
        *(
            endpoint_slice(n, endpoints=[endpoint("10.0.0.1", n)])
            for n in (reversed(nodes) if swap else nodes)
        ),
    )
    assert [e.local for e in found.cluster] == [True]


def test_ports_match_by_name_and_protocol() -> None:
    value = service(
        ports=[port(80, "web"), port(53, "dns", "UDP"), port(53, "dns-tcp"), port(99, "none")]
    )
    part = endpoint_slice(
        endpoints=[endpoint("10.0.0.1")],
        ports=[
            port(8080, "web"),
            port(5353, "dns", "UDP"),
            port(5454, "dns-tcp"),
            port(7, "web", "UDP"),
        ],
    )
    found = {p.name: [e.port for e in p.cluster] for p in resolved(value, part)}
    assert found == {
        "ns1/svc1:web/TCP/v4": [8080],
        "ns1/svc1:dns/UDP/v4": [5353],
        "ns1/svc1:dns-tcp/TCP/v4": [5454],
        "ns1/svc1:none/TCP/v4": [],
    }


def test_port_without_a_name() -> None:
    found = only(
        service(ports=[{"port": 80}]),
        endpoint_slice(endpoints=[endpoint("10.0.0.1")], ports=[{"port": 81}]),
    )
    assert found.name == "ns1/svc1/TCP/v4"
    assert [e.port for e in found.cluster] == [81]


def test_ports_of_one_name_count_once_and_say_so() -> None:
    (found,) = resolved(service(ports=[port(80, "a"), port(81, "a")]))
    assert places(found) == {"172.30.0.41:80": FrontendKind.CLUSTER_IP}
    assert "several ports are called 'a'" in found.warnings[0]


def test_frontends_of_every_kind() -> None:
    value = service(
        type="LoadBalancer",
        cluster_ips=["172.30.0.41", "fd00::41"],
        ports=[port(80, nodePort=30080)],
        externalIPs=["1.1.1.1", "2001:db8::1"],
        ingress=[{"ip": "2.2.2.2"}, {"ip": "2001:db8::2"}, {"ip": "3.3.3.3", "ipMode": "Proxy"}],
    )
    four, six = resolved(value)
    assert (four.name, six.name) == ("ns1/svc1:http/TCP/v4", "ns1/svc1:http/TCP/v6")
    assert places(four) == {
        "172.30.0.41:80": FrontendKind.CLUSTER_IP,
        "1.1.1.1:80": FrontendKind.EXTERNAL_IP,
        "2.2.2.2:80": FrontendKind.LOAD_BALANCER,
        "192.168.0.2:30080": FrontendKind.NODE_PORT | FrontendKind.SHARED,
    }
    assert places(six) == {
        "[fd00::41]:80": FrontendKind.CLUSTER_IP,
        "[2001:db8::1]:80": FrontendKind.EXTERNAL_IP,
        "[2001:db8::2]:80": FrontendKind.LOAD_BALANCER,
        "[fd00:1::2]:30080": FrontendKind.NODE_PORT | FrontendKind.SHARED,
    }


def test_one_address_of_two_kinds() -> None:
    value = service(
        type="LoadBalancer",
        externalIPs=["2.2.2.2", "172.30.0.41"],
        ingress=[{"ip": "2.2.2.2"}],
        loadBalancerSourceRanges=["10.0.0.0/8"],
    )
    guarded = FrontendKind.LOAD_BALANCER | FrontendKind.SOURCE_RANGES | FrontendKind.EXTERNAL_IP
    assert places(only(value)) == {
        "172.30.0.41:80": FrontendKind.CLUSTER_IP,
        "2.2.2.2:80": guarded,
    }


@pytest.mark.parametrize(
    "value",
    [
        service(cluster_ips=["None"]),
        service(cluster_ips=[]),
        service(type="ExternalName", externalName="x.test"),
        service(labels={"service.kubernetes.io/service-proxy-name": "other"}),
        service(ports=[]),
    ],
)
def test_services_that_are_not_ours(value: Json) -> None:
    assert resolved(value, endpoint_slice(endpoints=[endpoint("10.0.0.1")])) == ()


def test_only_families_with_a_cluster_ip() -> None:
    value = service(externalIPs=["2001:db8::1"], ports=[port(80, nodePort=30080)], type="NodePort")
    parts = [
        endpoint_slice("a", endpoints=[endpoint("10.0.0.1")]),
        endpoint_slice("b", endpoints=[endpoint("fd00::1")], address_type="IPv6"),
        endpoint_slice("c", endpoints=[endpoint("x.test")], address_type="FQDN"),
    ]
    found = only(value, *parts)
    assert sorted(places(found)) == ["172.30.0.41:80", "192.168.0.2:30080"]
    assert [format_address(e.address) for e in found.cluster] == ["10.0.0.1"]


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], []),
        (["10.0.0.0/8"], ["10.0.0.0/8"]),
        (["10.0.0.0/8", "2001:db8::/32"], ["10.0.0.0/8"]),
        (["2001:db8::/32"], []),  # nothing of this family: no restriction
        (["10.0.0.0/8", "0.0.0.0/0"], []),
        (["192.168.0.0/16"], ["2.2.2.2/32", "192.168.0.0/16"]),  # the node may, so may the address
    ],
)
def test_source_ranges(ranges: list[str], expected: list[str]) -> None:
    value = service(
        type="LoadBalancer",
        ingress=[{"ip": "2.2.2.2"}],
        loadBalancerSourceRanges=ranges,
        ports=[port(80, nodePort=30080)],
    )
    found = only(value)
    assert set(found.source_ranges) == {parse_prefix(text) for text in expected}
    guarded = {p for p, k in places(found).items() if FrontendKind.SOURCE_RANGES & k}
    assert guarded == ({"2.2.2.2:80"} if expected else set())


def _hinted(zones: Sequence[str], nodes: Sequence[str] = ("", "", "")) -> list[Json]:
    """Three endpoints; hints as texts of letters, one letter per zone or node."""
    return [
        endpoint(
            f"10.0.0.{i + 1}",
            zones=[f"zone-{z}" for z in zone],
            nodes=[f"worker-{n}" for n in node],
        )
        for i, (zone, node) in enumerate(zip(zones, nodes, strict=True))
    ]


@pytest.mark.parametrize(
    ("zones", "nodes", "chosen", "why"),
    [
        (("", "", ""), ("", "", ""), "123", "no hints"),
        (("a", "b", "a"), ("", "", ""), "13", "zone hints used: 2 of 3 for zone zone-a"),
        (("ab", "b", "c"), ("", "", ""), "1", "zone hints used: 1 of 3"),
        (("a", "", "a"), ("", "", ""), "123", "1 of 3 ready endpoints without a zone hint"),
        (("b", "b", "c"), ("", "", ""), "123", "no ready endpoint is meant for zone zone-a"),
        (("a", "a", "a"), ("1", "2", "3"), "1", "node hints used: 1 of 3 for node worker-1"),
        (("", "", ""), ("1", "2", "1"), "13", "node hints used"),
        (("a", "b", "a"), ("1", "", "3"), "13", "zone hints used"),
        (("b", "b", "b"), ("2", "2", "3"), "123", "no ready endpoint is meant for node worker-1"),
    ],
)
def test_topology_hints(zones: list[str], nodes: list[str], chosen: str, why: str) -> None:
    found = only(service(), endpoint_slice(endpoints=_hinted(zones, nodes)))
    assert "".join(str(e.address[-1]) for e in found.cluster) == chosen
    assert [e.address[-1] for e in found.local] == [1, 2, 3]  # never narrowed
    assert why in found.hints


def test_hints_without_a_zone_label() -> None:
    node = NodeFacts(name="worker-1")
    found = only(service(), endpoint_slice(endpoints=_hinted("aab")), node=node)
    assert len(found.cluster) == 3
    assert found.hints == "not used: this node has no zone label"
    by_node = _hinted("aab", "112")
    assert len(only(service(), endpoint_slice(endpoints=by_node), node=node).cluster) == 2


def test_unready_endpoints_do_not_spoil_hints() -> None:
    listed = [*_hinted("abb"), endpoint("10.0.0.9", ready=False)]
    found = only(service(), endpoint_slice(endpoints=listed))
    assert [e.address[-1] for e in found.cluster] == [1]


def test_terminating_fallback_ignores_hints() -> None:
    listed = [
        endpoint("10.0.0.1", zones=["zone-a"], **LEAVING),
        endpoint("10.0.0.2", zones=["zone-b"], **LEAVING),
    ]
    found = only(service(), endpoint_slice(endpoints=listed))
    assert len(found.cluster) == 2
    assert found.hints == "not used: no endpoint is ready"


def test_nothing_is_said_of_hints_that_nobody_gave() -> None:
    listed = [endpoint("10.0.0.1", **LEAVING), endpoint("10.0.0.2", **LEAVING)]
    found = only(service(), endpoint_slice(endpoints=listed))
    assert len(found.cluster) == 2
    assert found.hints == NO_HINTS


def test_policies_and_affinity_are_carried() -> None:
    found = only(
        service(
            type="NodePort",
            internalTrafficPolicy="Local",
            externalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 77}},
            ports=[port(80, nodePort=30080)],
        )
    )
    assert (found.internal_local, found.external_local) == (True, True)
    assert found.affinity_seconds == 77


def test_sctp_ports_are_translated_like_others() -> None:
    value = service(type="NodePort", ports=[port(53, "s", "SCTP", nodePort=30053)])
    part = endpoint_slice(endpoints=[endpoint("10.0.0.1")], ports=[port(5353, "s", "SCTP")])
    found = only(value, part)
    assert [e.port for e in found.cluster] == [5353]
    assert found.warnings == ()


def test_node_port_that_no_api_server_gave() -> None:
    found = only(service(type="NodePort"))
    assert "has no nodePort" in found.warnings[0]
    assert list(places(found)) == ["172.30.0.41:80"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}, (30100, 2)),
        ({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"}, None),
        ({"type": "NodePort", "externalTrafficPolicy": "Local"}, None),
    ],
)
def test_health_check_node_port(spec: Json, expected: tuple[int, int] | None) -> None:
    """Distinct local ready addresses over all ports; what terminates is not counted."""
    value = service(healthCheckNodePort=30100, ports=[port(80, "a"), port(81, "b")], **spec)
    part = endpoint_slice(
        endpoints=[
            endpoint("10.0.0.1"),
            endpoint("10.0.0.2"),
            endpoint("10.0.0.3", "worker-2"),
            endpoint("10.0.0.4", **LEAVING),
        ],
        ports=[port(80, "a"), port(81, "b")],
    )
    assert health_check(as_service(value), [as_slice(part)], HERE) == expected
