"""A file behind --config that changes under a running agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf.instance import Instance
from ebpf.kernel import bpffs
from lbctl.addresses import parse_address
from tests.lab.support.agent_process import SERVICE, Node
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

THEIRS = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
OURS = "apiVersion: lbctl/v1alpha1\nkind: AgentConfiguration\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    bpffs.mount()
    made = Node(f"hc-{tmp_path.stat().st_ino}", tmp_path)
    try:
        yield made
    finally:
        made.close()


def service_cidrs(node: Node) -> list[bytes]:
    with Instance.open(node.pin_dir) as opened:
        record = opened.config.records[0]
        return [record["cidr4"][i]["net"].tobytes() for i in range(record["cidr_count4"])]


def pods(node: Node) -> set[str]:
    """Interfaces of pods with programs; the uplink has others."""
    return {name.rpartition("-")[0] for name in node.attached()} - {"uplink0"}


def warnings(node: Node) -> str:
    said = node.status()
    assert said is not None
    return "\n".join(said.warnings)


def test_interfaces_and_ranges_follow_the_file(node: Node, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def write(text: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        fresh.replace(config)

    write(OURS + "serviceCIDRs: [10.96.0.0/16]\n")
    node.publish(SERVICE)
    for name in ("pod1", "cali1"):
        node.add_pod(name)
    process = node.started("--config", str(config))
    assert pods(node) == {"pod1", "cali1"}
    assert service_cidrs(node) == [parse_address("10.96.0.0")]

    write(OURS + "serviceCIDRs: [10.96.0.0/16, 10.97.0.0/16]\npodInterfaces: [cali*]\n")
    wait_until(lambda: pods(node) == {"cali1"})
    wait_until(lambda: len(service_cidrs(node)) == 2)

    # Understood, but more than the programs have room for.
    many = ", ".join(f"10.{n}.0.0/16" for n in range(5))
    write(OURS + f"serviceCIDRs: [{many}]\n")
    wait_until(lambda: "goes on with what it said before" in warnings(node))
    assert service_cidrs(node) == [parse_address("10.96.0.0"), parse_address("10.97.0.0")]
    assert pods(node) == {"cali1"}

    prefix = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: pod}\n"
    write(f"{THEIRS}{prefix}---\n{OURS}logFormat: json\n")
    wait_until(lambda: pods(node) == {"pod1"})
    wait_until(lambda: service_cidrs(node) == [])
    wait_until(lambda: "restart of the agent is needed for logFormat" in warnings(node))
    assert "goes on" not in warnings(node)
    assert process.poll() is None
