"""The agent as deploy/ runs it: with those capabilities and no others, in a file system that it can
write only where a volume is. Its whole life works, and without any of them something does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebpf.hooks import cgroup
from ebpf.instance import Instance
from ebpf.kernel import bpffs
from lbctl import status
from lbctl.datapath import consts
from lbctl.datapath.frontends import Frontends
from tests.lab.support import confined
from tests.lab.support.agent_process import BOUND, ROOT, SERVICE, Node
from tests.support.waiting import wait_until

pytestmark = pytest.mark.lab

DEPLOY = ROOT / "deploy"
DAEMONSET = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())
POD: dict[str, Any] = DAEMONSET["spec"]["template"]["spec"]
AGENT: dict[str, Any] = POD["containers"][0]
JOB: dict[str, Any] = yaml.safe_load((DEPLOY / "components/verify/cronjob.yaml").read_text())
CAPABILITIES: list[str] = AGENT["securityContext"]["capabilities"]["add"]
UPLINK = {"uplink0-ingress", "uplink0-egress"}
CACHE = "/var/cache/lbctl"


def volumes(cache: Path) -> dict[str, str]:
    """What the manifest lets the agent write, by its place; the cache is the test's own."""
    kinds = {volume["name"]: volume for volume in POD["volumes"]}
    found: dict[str, str] = {}
    for mount in AGENT["volumeMounts"]:
        if not mount.get("readOnly"):
            path = kinds[mount["name"]].get("hostPath", {}).get("path", confined.TMPFS)
            found[mount["mountPath"]] = str(cache) if mount["mountPath"] == CACHE else path
    return found


class ConfinedNode(Node):
    """A node whose agents and commands are confined, by default as the manifest says."""

    def __init__(self, name: str, directory: Path, cache: Path) -> None:
        super().__init__(name, directory)
        self.cgroup = cgroup.root() / name
        self.cgroup.mkdir()
        self._directory = directory
        self._cache = cache
        status.RUN_DIR.mkdir(exist_ok=True)  # as the kubelet does for a hostPath
        self.confine(CAPABILITIES)

    def confine(self, capabilities: list[str]) -> None:
        places = volumes(self._cache)
        # pytest's directory, which the new /tmp would cover; the agent has only to read it.
        places[str(self._directory)] = str(self._directory)
        self.confinement = confined.prefix(capabilities, places)

    def command(self, *more: str) -> list[str]:
        hooks = ("--socket-lb", "host", "--cgroup", str(self.cgroup))
        return super().command(*hooks, *more)

    def lbctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.name}", *self.confinement,
             sys.executable, "-m", "lbctl", *words, "--pin-dir", str(self.pin_dir)],
            capture_output=True, text=True, timeout=BOUND, check=False,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        )  # fmt: skip

    def hooks(self) -> int:
        return len(cgroup.SocketAttacher(self.pin_dir).hooks())

    def close(self) -> None:
        cgroup.SocketAttacher(self.pin_dir).detach()
        super().close()
        self.cgroup.rmdir()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first: one agent compiles, for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def node(tmp_path: Path, cache: Path) -> Iterator[ConfinedNode]:
    bpffs.mount()
    made = ConfinedNode(f"cf-{os.getpid()}", tmp_path, cache)
    made.add_pod("pod1")
    made.publish(SERVICE)
    try:
        yield made
    finally:
        made.close()


def test_the_whole_life_of_an_agent(node: ConfinedNode, cache: Path) -> None:
    for kept in cache.glob("*.bundle"):
        kept.unlink()
    process = node.started()  # compiles
    assert node.attached() == {*UPLINK, "pod1-ingress", "pod1-egress"}
    assert node.hooks() == len(cgroup.HOOKS)
    said = node.status()
    assert said is not None
    assert said.warnings == ()
    assert list(cache.glob("*.bundle"))
    reserved = node.in_namespace("sysctl", "-n", "net.ipv4.ip_local_reserved_ports")
    assert reserved.strip() == "61000-65535"

    node.add_pod("pod2")
    wait_until(lambda: len(node.attached()) == 6, BOUND)
    assert node.lbctl("status", "--check").returncode == 0
    node.end(process)
    before = node.programs()
    process = node.started()  # takes over, from the cache
    assert node.programs() == before
    node.end(process)

    for words in (["flow", "list"], ["service", "show", "default/web"], ["trace", *QUESTION]):
        done = node.lbctl(*words)
        assert done.returncode == 0, done.stderr
    assert "MISSING" not in node.lbctl("doctor").stdout
    done = node.lbctl("cleanup", "--yes")
    assert done.returncode == 0, done.stderr
    assert not node.pin_dir.exists()


QUESTION = ("10.244.0.2", "10.96.0.1:80/tcp")


def test_maps_are_exchanged_for_larger_ones(node: ConfinedNode) -> None:
    node.end(node.started())
    before = node.programs()
    process = node.started("--flows", "1024")
    # Ready is sooner: old maps go when no CPU can run the programs before any more.
    wait_until(lambda: not (node.pin_dir / "old").exists(), BOUND)
    node.end(process)
    assert node.attached() == before.keys()
    assert not set(node.programs().values()) & set(before.values())


def test_kernels_without_tcx(node: ConfinedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBCTL_MASK", "tcx")
    node.end(node.started())
    said = node.status()
    assert said is not None
    assert (said.interfaces, said.warnings) == (2, ())
    done = node.lbctl("cleanup", "--yes")
    assert done.returncode == 0, done.stderr


def test_the_job_that_verifies(node: ConfinedNode) -> None:
    """With less than the agent: it asks that to write."""
    node.started()
    (container,) = JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    node.confine(container["securityContext"]["capabilities"]["add"])
    done = node.lbctl("verify", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["differences"]) == (0, []), done.stderr
    with Instance.open(node.pin_dir, readonly=False) as opened:
        frontends = Frontends(opened.frontends)
        frontends.delete([row.tobytes() for row in frontends.read_all().keys])
    done = node.lbctl(container["args"][0], "--repair", "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["differences"]) == (0, []), done.stderr
    said = node.status()
    assert said
    assert said.audit
    assert said.audit.corrections["frontend"] == 2


def without(name: str) -> list[str]:
    return [other for other in CAPABILITIES if other != name]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("BPF", "his needs root, or (the capabilities )?CAP_BPF"),
        ("NET_ADMIN", "Operation not permitted"),
        ("PERFMON", "pointer arithmetic"),
    ],
)
def test_without_one_of_them_it_does_not_start(
    node: ConfinedNode, name: str, sentence: str
) -> None:
    assert name in CAPABILITIES
    node.confine(without(name))
    process = node.start()
    assert process.wait(BOUND) == 1
    assert re.search(sentence, node.log.read_text())
    assert not node.pin_dir.exists() or node.attached() == set()


@pytest.mark.parametrize("command", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("name", ["", "NET_RAW"])
def test_kube_proxys_rules_are_seen_in_both_kinds(
    node: ConfinedNode, command: str, name: str
) -> None:
    """Unseen, its connections would be reset. Legacy iptables asks by a raw socket."""
    node.in_namespace(command, "-t", "nat", "-N", "KUBE-SERVICES")
    node.confine(without(name))
    node.end(node.started())
    with Instance.open(node.pin_dir) as opened:
        seen = int(opened.config.records["flags"][0]) & consts.CONFIG_PASS_MIDSTREAM
    assert bool(seen) == (not name or command == "iptables-nft")


def test_the_set_is_the_least() -> None:
    """Each one is taken away in one of the tests above."""
    assert sorted(CAPABILITIES) == ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON"]


ENTER = """
import sys
from pathlib import Path
from ebpf.errors import KernelError
from ebpf.kernel import sockdiag
try:
    print(sockdiag._enter(Path(sys.argv[1])))
except KernelError as error:
    print(error.message, error.hint)
"""


def enter(node: ConfinedNode, place: str) -> str:
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{node.name}", *node.confinement, sys.executable, "-c", ENTER,
         place],
        capture_output=True, text=True, timeout=BOUND, check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    return done.stdout.strip()


def test_pods_namespaces_are_entered_with_the_component_alone(node: ConfinedNode) -> None:
    place = f"/run/netns/{node.name}-pod1"
    assert "needs CAP_SYS_ADMIN" in enter(node, place)
    path = DEPLOY / "components" / "pod-sockets" / "daemonset.yaml"
    patch = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"][0]
    node.confine(patch["securityContext"]["capabilities"]["add"])
    assert enter(node, place) == "True"
    # Engines that name no namespaces: a process's can be looked at with CAP_SYS_PTRACE besides.
    there = subprocess.Popen(["nsenter", f"--net={place}", "sleep", "60"])
    try:
        assert enter(node, f"/proc/{there.pid}/ns/net") == "False"
        node.confine([*patch["securityContext"]["capabilities"]["add"], "SYS_PTRACE"])
        assert enter(node, f"/proc/{there.pid}/ns/net") == "True"
    finally:
        there.kill()
        there.wait()


def test_the_node_sees_an_agent_that_calls_itself_1(node: ConfinedNode) -> None:
    """Without hostPID the agent is process 1 of its container."""
    node.confinement = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    outer = node.start()
    wait_until(lambda: (s := node.status()) is not None and s.pid == 1 and s.ready, BOUND)
    agent = status.running_agent(node.pin_dir)
    assert agent not in (0, 1, outer.pid)
    assert status.said_by(1, agent)
    node.confinement = []
    done = node.lbctl("status", "--check", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agent"] == agent
    os.kill(agent, signal.SIGTERM)
    assert outer.wait(BOUND) == 0
    assert status.running_agent(node.pin_dir) == 0
