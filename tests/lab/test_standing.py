"""What an agent says of itself when something is wrong, by real faults, and that it goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebpf.instance import Instance
from ebpf.kernel import bpffs
from tests.lab.support.agent_process import BOUND, SERVICE, Node, ip, slice_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

ASK = """
import http.client, sys
asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
asked.request("GET", sys.argv[2])
answer = asked.getresponse()
print(answer.status, answer.read().decode())
"""
MANY = 200


class Hurried(Node):
    """A node whose agents have shorter bounds; SIGUSR1 kills their threads."""

    def command(self, *more: str) -> list[str]:
        words = super().command(*more)
        return ["tests.lab.support.hurried" if word == "lbctl" else word for word in words]

    def ask(self, path: str, port: int = 10256) -> tuple[int, str]:
        """Status and body of an answer."""
        said = self.in_namespace(sys.executable, "-c", ASK, str(port), path)
        code, _, body = said.partition(" ")
        return int(code), body

    def codes(self) -> tuple[int, int, int]:
        """Of /healthz, /livez and /readyz."""
        health, life, readiness = (self.ask(path)[0] for path in ("/healthz", "/livez", "/readyz"))
        return health, life, readiness

    def warned(self, *words: str) -> bool:
        said = self.status()
        return said is not None and any(all(w in line for w in words) for line in said.warnings)

    def backends(self) -> int:
        with Instance.open(self.pin_dir) as opened:
            return int(np.count_nonzero(opened.backends.records["port"]))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Hurried]:
    bpffs.mount()
    made = Hurried(f"st-{os.getpid()}", tmp_path)
    try:
        yield made
    finally:
        made.close()


def node_called(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def test_all_is_well_and_kube_proxys_other_port_answers(node: Hurried) -> None:
    node.publish(SERVICE, slice_of("10.0.0.1"), node_called("node1"))
    node.started()
    wait_until(lambda: node.codes() == (200, 200, 200), BOUND)
    assert "problems" not in json.loads(node.ask("/readyz")[1])
    assert node.ask("/proxyMode", 10249) == (200, "lbctl\n")
    said = node.status()
    assert said is not None
    assert (said.warnings, said.thread_restarts) == ((), 0)


def test_programs_taken_away_come_back_and_it_is_said(node: Hurried) -> None:
    node.add_pod("pod1")
    node.publish(SERVICE, slice_of("10.0.0.1"))
    node.started()
    before = node.attached()
    for pin in ("pod1-ingress", "uplink0-egress"):
        (node.pin_dir / "links" / pin).unlink()  # the last reference: the kernel detaches
    wait_until(lambda: node.attached() == before, BOUND)
    wait_until(lambda: node.warned("pod1", "taken away"), BOUND)
    wait_until(lambda: node.warned("uplink0", "taken away"), BOUND)


def test_a_name_that_no_node_has(node: Hurried) -> None:
    node.publish(SERVICE, slice_of("10.0.0.1"), node_called("node1.example"))
    process = node.start("--node-name", " Node1 ")
    wait_until(lambda: node.warned("no Node object is called node1,"), BOUND)
    wait_until(lambda: node.codes() == (200, 200, 503), BOUND)
    assert "no Node object" in json.loads(node.ask("/readyz")[1])["problems"][0]
    assert not node.ready(process)
    node.publish(SERVICE, slice_of("10.0.0.1"), node_called("node1"))
    wait_until(lambda: node.ready(process) and node.codes() == (200, 200, 200), BOUND)
    assert not node.warned("no Node object")


def test_a_source_that_is_cut_off(node: Hurried) -> None:
    node.publish(SERVICE, slice_of("10.0.0.1"))
    process = node.started()
    away = node.manifests.with_name("away")
    before = node.contents()
    node.manifests.rename(away)
    wait_until(lambda: node.warned("cut off from the source of objects"), BOUND)
    wait_until(lambda: node.codes() == (200, 200, 503), BOUND)
    assert not node.ready(process)
    assert node.contents() == before
    away.rename(node.manifests)
    wait_until(lambda: node.ready(process) and node.codes() == (200, 200, 200), BOUND)


def test_threads_that_are_killed_are_replaced(node: Hurried) -> None:
    """Each when it does its next thing: a pod comes, somebody asks, a file changes."""
    node.publish(SERVICE, slice_of("10.0.0.1"))
    process = node.started()
    process.send_signal(signal.SIGUSR1)
    node.add_pod("pod1")
    node.publish(SERVICE, slice_of("10.0.0.1", "10.0.0.2"))
    with contextlib.suppress(subprocess.CalledProcessError):  # it may end before it answers
        node.ask("/livez")

    def replaced() -> int:
        said = node.status()
        return said.thread_restarts if said else 0

    def corrected() -> set[str]:
        said = node.status()
        return set(said.audit.corrections) if said and said.audit else set()

    wait_until(lambda: replaced() >= 3, BOUND)
    wait_until(lambda: {"watch", "thread"} <= corrected(), BOUND)
    wait_until(lambda: {"pod1-ingress", "pod1-egress"} <= node.attached(), BOUND)
    wait_until(lambda: node.backends() == 2, BOUND)
    wait_until(lambda: node.ready(process), BOUND)
    assert node.codes() == (200, 200, 200)
    log = node.log.read_text()
    for name in ("interfaces", "health server", "manifests"):
        assert any("thread is replaced" in line and name in line for line in log.splitlines())


def test_a_change_is_applied_while_interfaces_wait(node: Hurried) -> None:
    """Two hundred pods come at once."""
    node.add_namespace(f"{node.name}-pods")
    node.publish(SERVICE, slice_of("10.0.0.1"))
    process = node.started()
    lines = [
        f"link add v{i} type veth peer name p{i} netns {node.name}-pods\n" for i in range(MANY)
    ]
    subprocess.run(
        ["ip", "-n", node.name, "-batch", "-"], input="".join(lines), text=True, check=True
    )
    node.publish(SERVICE, slice_of("10.0.0.1", "10.0.0.2"))
    wait_until(lambda: node.backends() == 2, BOUND)
    waiting = 2 * (MANY + 1) - len(node.attached())
    assert waiting > 0
    ip("-n", node.name, "link", "add", "late", "type", "veth", "peer", "name", "late",
       "netns", f"{node.name}-pods")  # fmt: skip
    wait_until(lambda: {"late-ingress", "late-egress"} <= node.attached(), BOUND)
    assert len(node.attached()) < 2 * (MANY + 2)  # the newest did not wait for the others
    wait_until(lambda: len(node.attached()) == 2 * (MANY + 2), BOUND)
    assert node.ready(process)
