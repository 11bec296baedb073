"""The agent as a process, in a namespace of its own: starting, ending, interfaces, surroundings."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from ebpf.instance import Instance
from ebpf.kernel import bpffs
from lbctl import status
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from lbctl.host.removal import survey
from tests.lab.support.agent_process import BOUND, ROOT, SERVICE, Node, ip, slice_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab


UPLINK = {"uplink0-ingress", "uplink0-egress"}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    bpffs.mount()
    made = Node(f"ag-{os.getpid()}", tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_fresh_instance_waits_for_objects_before_it_acts(node: Node) -> None:
    node.add_pod("pod1")
    (node.manifests / "objects.json").mkdir()  # nothing readable yet
    process = node.start()
    wait_until(node.pin_dir.joinpath("programs").is_dir, BOUND)
    wait_until(lambda: "agent started" in node.log.read_text(), BOUND)
    assert process.poll() is None
    (node.manifests / "objects.json").rmdir()
    node.publish(SERVICE, slice_of("10.0.0.1", "10.0.0.2"))
    wait_until(lambda: (s := node.status()) and s.ready and s.services == 1, BOUND)
    said = node.status()
    assert said is not None
    assert (said.service_ports, said.endpoints, said.interfaces) == (1, 2, 2)
    assert said.last_apply.endswith("+00:00")
    assert said.tables["backends"].entries == 2
    assert node.attached() == {*UPLINK, "pod1-ingress", "pod1-egress"}
    # The uplink is a veth, and is not taken for a pod's.
    programs = node.programs()
    assert programs["uplink0-ingress"] != programs["pod1-ingress"]


def test_a_restart_writes_nothing(node: Node) -> None:
    node.add_pod("pod1")
    node.publish(SERVICE, slice_of("10.0.0.1"))
    process = node.started()
    wait_until(lambda: node.sweeps() > 0, BOUND)  # the first sweep may come after the first sync
    node.end(process, signal.SIGKILL)
    before, running = node.contents(), node.attached()
    process = node.started()
    assert node.contents() == before
    assert node.attached() == running
    log = node.log.read_text()
    assert log.count("data path configured") == 1
    assert node.end(process, signal.SIGINT) == 0
    assert node.contents() == before
    assert node.attached() == running
    said = node.status()
    assert said is not None
    assert not said.ready
    assert status.running_agent(node.pin_dir) == 0


def test_what_changed_meanwhile_is_applied_by_the_next_agent(node: Node) -> None:
    node.publish(SERVICE, slice_of("10.0.0.1"))
    node.end(node.started(), signal.SIGKILL)
    node.add_pod("pod1")
    node.publish(SERVICE, slice_of("10.0.0.2", "10.0.0.3"))
    node.started()
    assert node.attached() == {*UPLINK, "pod1-ingress", "pod1-egress"}
    with Instance.open(node.pin_dir) as opened:
        rows = opened.backends.records
        serving = rows[rows["flags"] & consts.BACKEND_SERVING != 0]
        assert sorted(r["addr"].tobytes()[-1] for r in serving) == [2, 3]
    node.publish()
    wait_until(lambda: (s := node.status()) and s.services == 0, BOUND)
    with Instance.open(node.pin_dir) as opened:
        assert not len(Frontends(opened.frontends).read_all().keys)


def test_a_second_agent_says_who_holds_the_instance(node: Node) -> None:
    node.publish(SERVICE)
    process = node.started()
    assert status.running_agent(node.pin_dir) == process.pid
    done = subprocess.run(
        node.command(), capture_output=True, text=True, timeout=BOUND,
        env=dict(os.environ, PYTHONPATH=str(ROOT)), check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert f"process {process.pid}" in done.stderr
    assert node.ready(process)


def test_pods_are_followed(node: Node) -> None:
    node.publish(SERVICE)
    node.started()
    assert node.attached() == UPLINK
    node.add_pod("pod1")
    wait_until(lambda: node.attached() == {*UPLINK, "pod1-ingress", "pod1-egress"})
    node.add_pod("pod2")
    wait_until(lambda: len(node.attached()) == 6)
    ip("-n", node.name, "link", "delete", "pod1")
    wait_until(lambda: survey(node.pin_dir).interfaces == ("pod2", "uplink0"))
    assert "programs attached" in node.log.read_text()


def test_pod_interfaces_can_be_named(node: Node) -> None:
    node.publish(SERVICE)
    node.add_pod("pod1")
    node.add_pod("cali7")
    node.started("--pod-interface", "cali*", "--pod-interface", "eni*")
    assert node.attached() == {*UPLINK, "cali7-ingress", "cali7-egress"}


def test_an_uplink_that_was_taken_for_a_pods_gets_an_uplinks_programs(node: Node) -> None:
    node.publish(SERVICE)
    node.add_pod("second0")
    node.started()
    before = node.programs()
    assert before["second0-ingress"] != before["uplink0-ingress"]
    ip("-n", node.name, "route", "add", "default", "dev", "second0", "metric", "9")
    # Ingress is replaced first.
    wait_until(lambda: node.programs()["second0-egress"] == before["uplink0-egress"])
    assert node.programs()["second0-ingress"] == before["uplink0-ingress"]


def test_kube_proxys_connections_are_let_alone_while_its_rules_exist(node: Node) -> None:
    node.publish(SERVICE)
    node.in_namespace("iptables-nft", "-t", "nat", "-N", "KUBE-SERVICES")
    node.end(node.started())
    assert config_flags(node) == consts.CONFIG_PASS_MIDSTREAM
    node.in_namespace("iptables-nft", "-t", "nat", "-X", "KUBE-SERVICES")
    node.end(node.started())
    assert config_flags(node) == 0
    node.end(node.started("--takeover", "on"))
    assert config_flags(node) == consts.CONFIG_PASS_MIDSTREAM


def config_flags(node: Node) -> int:
    with Instance.open(node.pin_dir) as opened:
        return int(opened.config.records["flags"][0])


def test_the_node_is_known_by_its_default_route_without_a_node_object(node: Node) -> None:
    node.publish(SERVICE)
    node.started()
    with Instance.open(node.pin_dir) as opened:
        assert opened.config.records["node4"][0].tobytes()[12:] == bytes([192, 0, 2, 1])
        assert not np.any(opened.config.records["node6"][0]["w"])


def test_ports_are_reserved_in_this_namespace_alone(node: Node) -> None:
    def reserved() -> str:
        return node.in_namespace("sysctl", "-n", "net.ipv4.ip_local_reserved_ports").strip()

    machine = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text()
    node.in_namespace("sysctl", "-w", "net.ipv4.ip_local_reserved_ports=9000-9010")
    node.publish(SERVICE)
    node.end(node.started())
    assert reserved() == "9000-9010,61000-65535"
    node.end(node.started())
    assert reserved() == "9000-9010,61000-65535"
    assert Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text() == machine


def test_a_broken_manifest_removes_nothing_and_is_reported(node: Node) -> None:
    node.publish(SERVICE, slice_of("10.0.0.1"))
    process = node.started()
    (node.manifests / ".x").write_text('{"apiVersion": "v1", "kind": "Service", "metadata": 3}\n')
    (node.manifests / ".x").rename(node.manifests / "objects.json")
    wait_until(lambda: (s := node.status()) and s.source.problems, BOUND)
    said = node.status()
    assert said is not None
    assert said.services == 1
    assert "objects.json" in said.source.problems[0]
    # A restart cannot read it either, and keeps what is programmed.
    node.end(process)
    process = node.start()
    wait_until(lambda: (s := node.status()) and s.pid == process.pid and s.synced, BOUND)
    with Instance.open(node.pin_dir) as opened:
        assert len(Frontends(opened.frontends).read_all().keys) == 2


def test_a_path_that_is_not_there_is_an_error_at_once(node: Node) -> None:
    node.manifests.rmdir()
    process = node.start()
    assert process.wait(BOUND) == 1
    assert str(node.manifests) in node.log.read_text()


def test_the_log_can_be_json(node: Node) -> None:
    node.publish(SERVICE)
    node.end(node.started("--log-format", "json"))
    lines = [msgspec.json.decode(line) for line in node.log.read_bytes().splitlines()]
    assert {"agent started", "first sync done"} <= {line["event"] for line in lines}
