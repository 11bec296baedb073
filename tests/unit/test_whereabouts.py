"""Where addresses are that are no endpoint's: nodes, their ranges of pods, pods themselves."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbctl.addresses import parse_address, parse_prefix
from lbctl.model.records import Node
from lbctl.observe.places import Place, Places
from lbctl.sources import whereabouts
from lbctl.sources.asking import HttpError
from lbctl.sources.targets import Target
from lbctl.sources.whereabouts import Ranges
from tests.support.apiserver import ApiServer
from tests.unit.test_origins import other_node, pod_of, put_pod

NODES = [
    Node(
        name=name,
        internal_ips=(parse_address(address),),
        pod_cidrs=tuple(map(parse_prefix, ranges)),
    )
    for name, address, ranges in (
        ("node1", "192.0.2.1", ["10.1.1.0/24", "fd00:1::/64"]),
        ("node2", "192.0.2.2", ["10.1.2.0/23", "fd00:2::/64"]),
    )
]


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), unique_by=lambda p: p, max_size=9
    ),
    st.integers(0, 2**32 - 1),
)
def test_ranges_say_what_prefixes_do(prefixes: list[tuple[int, int]], number: int) -> None:
    networks = [ipaddress.ip_network((first, bits), strict=False) for first, bits in prefixes]
    ranges = Ranges(
        Node(name=f"{at}", pod_cidrs=(parse_prefix(str(network)),))
        for at, network in enumerate(networks)
    )
    address = ipaddress.IPv4Address(number)
    for asked in (address, *(network.network_address for network in networks)):
        found = ranges.of(parse_address(str(asked)))
        inside = [asked in network for network in networks]
        assert bool(found) == any(inside)
        assert not found or inside[int(found)]


def places(**more: object) -> Places:
    made = Places(
        "node1",
        frozenset({parse_address("192.0.2.1"), parse_address("10.1.1.1")}),
        lambda: {parse_address("10.1.2.9"): Target("default/web", "node2")},
        read_nodes=lambda: NODES,
        interface_of=lambda address: "veth7",
        **more,  # type: ignore[arg-type]
    )
    made.refresh()
    return made


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1", Place("node1", "node1", "node")),
        ("10.1.1.1", Place("node1", "node1", "node")),  # its end of the pods' network
        ("192.0.2.2", Place("node2", "node2", "node")),
        ("10.1.2.9", Place("default/web", "node2", "pod")),
        ("10.1.3.9", Place("", "node2", "pod")),
        ("10.1.1.9", Place("", "node1", "pod", "veth7")),
        ("fd00:2::9", Place("", "node2", "pod")),
        ("198.51.100.1", Place()),
    ],
)
def test_what_is_known_of_an_address(address: str, place: Place) -> None:
    found = places().named(address)
    assert found == place
    unnamed = place.kind == "pod" and not place.name
    assert found.hint == (
        f"pod on {place.node}{' by veth7' if place.interface else ''}" if unnamed else ""
    )


def test_a_pod_of_the_hosts_network_does_not_name_all_that_a_node_sends() -> None:
    made = Places(
        "node1",
        read=lambda: {parse_address("192.0.2.2"): Target("monitoring/exporter-x", "node2")},
        read_nodes=lambda: NODES,
    )
    made.refresh()
    assert made.named("192.0.2.2") == Place("node2", "node2", "node")


def test_nodes_are_read_again_for_strangers_alone_and_seldom() -> None:
    now, reads = 0.0, 0

    def read() -> list[Node]:
        nonlocal reads
        reads += 1
        return NODES

    made = Places("node1", now=lambda: now, read_nodes=read)
    made.refresh()
    made.named("10.1.2.7")
    now = 1000.0
    made.refresh()
    assert reads == 1, "its node is known"
    made.named("198.51.100.1")
    made.refresh()
    made.named("198.51.100.2")
    now = 1299.0
    made.refresh()
    assert reads == 2
    now = 1301.0
    made.refresh()
    assert reads == 3


def test_of_the_api(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.put(other_node())
        put_pod(server, pod_of("apps/client", "worker-1", "10.9.1.5"))
        put_pod(server, pod_of("apps/proxy", "worker-1", "192.168.0.2", hostNetwork=True))
        ended = pod_of("apps/job", "worker-1", "10.9.1.6")
        ended["status"]["phase"] = "Succeeded"
        put_pod(server, ended)
        file = server.kubeconfig(tmp_path)
        assert [node.name for node in whereabouts.nodes_of_api(file, None)] == ["worker-2"]
        found = whereabouts.pods_of_api(file, None)
        assert found == {parse_address("10.9.1.5"): Target("apps/client", "worker-1")}
        server.failures.append((403, {}))
        with pytest.raises(HttpError):
            whereabouts.pods_of_api(file, None)


def test_of_files(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text(json.dumps(other_node()))
    assert [node.name for node in whereabouts.nodes_of_files(tmp_path)] == ["worker-2"]
