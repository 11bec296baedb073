"""Names of the pods behind endpoints, read from wherever the agent has its objects from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ebpf.errors import LbError
from lbctl.addresses import parse_address
from lbctl.sources import targets
from lbctl.sources.targets import Target
from tests.support.apiserver import ApiServer


def slice_of(name: str, endpoints: list[dict[str, Any]], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, **metadata},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}],
        "endpoints": endpoints,
    }


def pod(address: str, name: str, **reference: Any) -> dict[str, Any]:
    return {
        "addresses": [address],
        "nodeName": "node1",
        "targetRef": {"kind": "Pod", "name": name, **reference},
    }


SLICES = [
    slice_of("a", [pod("10.1.0.2", "web-1"), pod("10.1.0.3", "web-2", namespace="other")]),
    slice_of("b", [pod("fd00::1", "six")], namespace="shop"),
    slice_of("c", [{"addresses": ["10.1.0.4"]}, pod("10.1.0.5", "vm", kind="Machine")]),
    slice_of("d", [pod("host.example", "named")]),
]
FOUND = {
    parse_address(address): Target(name, node)
    for address, name, node in (
        ("10.1.0.2", "default/web-1", "node1"),
        ("10.1.0.3", "other/web-2", "node1"),
        ("fd00::1", "shop/six", "node1"),
        ("10.1.0.4", "", ""),
        ("10.1.0.5", "", "node1"),
    )
}


def test_of_files(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"kind": "List", "items": SLICES[:2]}))
    (tmp_path / "two.yaml").write_text("\n---\n".join(json.dumps(item) for item in SLICES[2:]))
    (tmp_path / "broken.yaml").write_text("{")
    odd = {"kind": "EndpointSlice", "metadata": {"name": "x"}, "endpoints": "none"}
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    assert targets.of_files(tmp_path) == FOUND


@pytest.mark.parametrize("first", ["1.json", "3.json"])
def test_a_slice_made_by_hand_takes_no_name_away(first: str, tmp_path: Path) -> None:
    by_hand: list[dict[str, Any]] = [
        {"addresses": ["10.1.0.2"]},
        {"addresses": ["10.1.0.4"], "nodeName": "node2"},
    ]
    (tmp_path / first).write_text(json.dumps(slice_of("hand", by_hand)))
    (tmp_path / "2.json").write_text(json.dumps({"kind": "List", "items": SLICES}))
    known = FOUND | {parse_address("10.1.0.4"): Target("", "node2")}
    assert targets.of_files(tmp_path) == known


def test_of_the_api(tmp_path: Path) -> None:
    with ApiServer() as server:
        for item in SLICES:
            item = {**item, "metadata": {"namespace": "default", **item["metadata"]}}
            server.put(item)
        assert targets.of_api(server.kubeconfig(tmp_path), None) == FOUND
        server.failures.append((403, {}))
        with pytest.raises(LbError):
            targets.of_api(server.kubeconfig(tmp_path), None)
