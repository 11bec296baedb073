"""The lab itself: connected within, invisible from without, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpf.errors import LbError
from lbctl.lab import cgroup, namespace, sessions, state, teardown
from lbctl.lab.agents import environment, lbctl_command
from lbctl.lab.cluster import Lab
from lbctl.lab.process import ProcessId

pytestmark = pytest.mark.lab


def root_namespace() -> dict[str, object]:
    """What a lab must not change: links, addresses, routes, forwarding and filters."""

    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def without_counters(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("#")]

    names = ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter")
    return {
        "links": json.loads(run("ip", "-j", "link")),
        "addresses": run("ip", "-o", "address", "show", "scope", "global").count("\n"),
        "routes": run("ip", "route") + run("ip", "-6", "route"),
        "sysctls": [Path("/proc/sys/net/ipv4", name).read_text() for name in names],
        "dad": Path("/proc/sys/net/ipv6/conf/default/accept_dad").read_text(),
        "filters": without_counters(run("iptables-save")),
    }


def traces(name: str) -> list[str]:
    """Everything on this machine that bears the name of the lab `name`."""
    paths = state.Paths(name)
    directories = [paths.run, paths.pins, cgroup.root_of(name)]
    found = [str(directory) for directory in directories if directory.exists()]
    return found + teardown.namespaces_of(name)


@pytest.fixture(scope="module", params=["route", "bridge"])
def served(request: pytest.FixtureRequest, make_lab: Callable[..., Lab]) -> Iterator[Lab]:
    """A lab without agents, with servers in all pods, per CNI shape."""
    lab = make_lab(request.param[0], cni=request.param, nodes=2, pods=2, agent=False)
    sessions.start_http(lab, lab.pods)
    sessions.start_udp(lab, lab.pods)
    yield lab
    lab.down()


@pytest.mark.parametrize("client", ["pod1", "node1", "node2"])
@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_every_pod_is_reached_over_tcp_and_udp(served: Lab, client: str, family: int) -> None:
    for pod in served.pods:
        where = sessions.target(pod.addresses[family], sessions.HTTP_PORT)
        tcp = sessions.run_client(served, client, "http", where, "--requests", "5", "--rate", "500")
        assert tcp.servers == {pod.name: 5}, tcp
        where = sessions.target(pod.addresses[family], sessions.DNS_PORT)
        udp = sessions.run_client(served, client, "dns", where, "--requests", "5", "--rate", "500")
        assert udp.servers == {pod.name: 5}, udp


@pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])
def test_pods_see_each_other_by_their_own_addresses(served: Lab, family: int) -> None:
    where = sessions.target(served.pods[1].addresses[family], sessions.HTTP_PORT)
    report = sessions.run_client(served, "pod1", "http", where, "--requests", "1")
    assert list(report.seen_as) == [served.pods[0].addresses[family]]


def test_ipv6_is_usable_at_once(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab("v6", nodes=2, pods=1, agent=False)
    for member in ("node1", "pod1", "outside"):
        shown = lab.exec(member, ["ip", "-j", "-6", "address"], check=True).stdout
        addresses = [one for link in json.loads(shown) for one in link.get("addr_info", [])]
        assert [one for one in addresses if one.get("tentative")] == []
    lab.down()


def test_outside_reaches_nodes_but_no_pods(served: Lab) -> None:
    routes = served.exec("outside", ["ip", "route"], check=True).stdout
    assert "10.96.0.0/16 via 172.18.0.11" in routes
    assert "10.244" not in routes
    lab_client = ["http", sessions.target(served.nodes[1].ipv4, 9), "--requests", "1"]
    report = sessions.run_client(served, "outside", *lab_client)
    assert report.failures == {"refused": 1}  # by the node: it is there


def test_pods_come_and_go(served: Lab) -> None:
    pod = served.add_pod("node2")
    sessions.start_http(served, [pod])
    for address in pod.addresses:
        where = sessions.target(address, sessions.HTTP_PORT)
        report = sessions.run_client(served, "pod1", "http", where, "--requests", "3")
        assert report.servers == {pod.name: 3}
    served.remove_pod(pod.name)
    assert pod.namespace not in namespace.existing()
    assert not served.paths.cgroup(pod).exists()
    shown = served.exec("node2", ["ip", "-j", "link"], check=True).stdout
    assert pod.interface not in {link["ifname"] for link in json.loads(shown)}
    assert pod not in Lab.load(served.name).pods


def test_processes_run_in_namespace_and_cgroup_of_their_member(served: Lab) -> None:
    script = "readlink /proc/self/ns/net; cat /proc/self/cgroup; ls -d /sys/fs/bpf/lbctl-lab"
    shown = served.exec("pod2", ["sh", "-c", script], check=True).stdout.splitlines()
    inode = namespace.path_of(f"{served.name}-pod2").stat().st_ino
    assert shown[0] == f"net:[{inode}]"
    assert f"0::/lbctl-lab-{served.name}/node2/pod2" in shown
    assert shown[-1] == "/sys/fs/bpf/lbctl-lab"  # bpffs is still in view


def test_manifests_are_written_in_one_step_and_withdrawn(served: Lab) -> None:
    served.apply("web", [{"kind": "Service", "metadata": {"name": "web"}}])
    written = served.paths.manifests / "web.json"
    assert json.loads(written.read_bytes())["items"][0]["metadata"] == {"name": "web"}
    assert sorted(path.name for path in served.paths.manifests.iterdir()) == [
        "nodes.json",
        "web.json",
    ]
    served.withdraw("web")
    served.withdraw("web")
    assert not written.exists()


def test_a_lab_leaves_the_root_namespace_alone_and_no_trace(lab_name: str) -> None:
    name = f"{lab_name[:30]}-trace"
    before = root_namespace()
    with Lab.up(name, agent=False) as lab:
        assert root_namespace() == before
        lab.serve({"pod1": ["sh", "-c", "echo ready; exec sleep 600"]})
        procs = cgroup.root_of(name) / "node1" / "pod1" / "cgroup.procs"
        server = ProcessId.of(int(procs.read_text()))
        assert server.running
        assert len(traces(name)) == 3 + 2 + 6 + 2
    assert not server.running
    assert traces(name) == []
    assert root_namespace() == before


def test_a_name_can_be_used_again_at_once_but_not_twice(lab_name: str) -> None:
    name = f"{lab_name[:30]}-again"
    for _ in range(2):
        with Lab.up(name, nodes=1, pods=1, agent=False):
            with pytest.raises(LbError, match="exists"):
                Lab.up(name, nodes=1, pods=1, agent=False)
            assert Lab.load(name).pods[0].name == "pod1"  # the failed attempt took nothing down
    assert teardown.remove(name) is False


def test_a_namespace_of_somebody_else_is_not_taken(lab_name: str) -> None:
    name = f"{lab_name[:30]}-alien"
    namespace.ip_batch([f"netns add {name}-pod1"])
    try:
        with pytest.raises(LbError, match=f"{name}-pod1"):
            Lab.up(name, nodes=1, pods=1, agent=False)
        assert teardown.remove(name) is False
        assert teardown.namespaces_of(name) == [f"{name}-pod1"]
    finally:
        namespace.ip_batch([f"netns delete {name}-pod1"])


def test_a_failing_up_cleans_up_after_itself(
    lab_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{lab_name[:30]}-fail"
    monkeypatch.setattr("lbctl.lab.network.outside_commands", lambda _: ["link set nothing up"])
    with pytest.raises(LbError, match="nothing"):
        Lab.up(name, nodes=1, pods=1, agent=False)
    assert traces(name) == []


@pytest.mark.parametrize("stage", ["network.build", "network.node_commands", "objects.nodes"])
def test_down_ends_what_a_killed_up_left(lab_name: str, stage: str) -> None:
    name = f"{lab_name[:30]}-kill"
    script = f"""
import os, signal
from lbctl.lab import network, objects
from lbctl.lab.cluster import Lab
{stage} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Lab.up({name!r}, nodes=1, pods=1, agent=False)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script], env=environment(), timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert traces(name) != []
    assert teardown.remove(name) is True
    assert traces(name) == []


def test_down_does_not_pull_a_lab_from_under_its_builder(lab_name: str) -> None:
    name = f"{lab_name[:30]}-busy"
    script = f"""
import time
from lbctl.lab import network
from lbctl.lab.cluster import Lab
def build(_):
    print("building", flush=True)
    time.sleep(60)
network.build = build
Lab.up({name!r}, nodes=1, pods=1, agent=False)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE
    ) as builder:
        assert builder.stdout is not None
        builder.stdout.readline()
        with pytest.raises(LbError, match=f"process {builder.pid}"):
            teardown.remove(name)
        builder.kill()
        builder.wait(timeout=10)
    assert teardown.remove(name) is True
    assert traces(name) == []


def lbctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lbctl_command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )


def test_the_command_line(lab_name: str) -> None:
    name = f"{lab_name[:30]}-cli"
    up = ["lab", "up", "--name", name, "--nodes", "2", "--pods", "3", "--no-agent"]
    assert lbctl(*up).returncode == 0
    try:
        shown = json.loads(lbctl("lab", "status", "--name", name, "-o", "json").stdout)
        assert [node["name"] for node in shown["nodes"]] == ["node1", "node2"]
        assert len(shown["pods"]) == 6
        assert shown["nodes"][0]["agent"] is None
        for node in shown["nodes"]:
            assert Path(node["pin_dir"]).is_dir()
            assert Path(node["cgroup"]).is_dir()
        address = lbctl("lab", "exec", "--lab", name, "pod3", "--", "ip", "-o", "-4", "address")
        assert shown["pods"][2]["addresses"][0] in address.stdout
        assert (
            lbctl("lab", "exec", "pod3", "--lab", name, "--", "sh", "-c", "exit 7").returncode == 7
        )
        assert lbctl("lab", "exec", "--lab", name, "pod9", "--", "true").returncode == 3
        assert "pod6" in lbctl("lab", "status", "--name", name).stdout
    finally:
        assert lbctl("lab", "down", "--name", name).returncode == 0
    assert traces(name) == []
    assert lbctl("lab", "down", "--name", name).returncode == 0
    assert lbctl("lab", "status", "--name", name).returncode == 3


def test_down_also_ends_processes_that_ignore_signals(lab_name: str) -> None:
    name = f"{lab_name[:30]}-deaf"
    with Lab.up(name, nodes=1, pods=1, agent=False) as lab:
        lab.serve({"node1": ["sh", "-c", "trap '' TERM INT HUP; echo ready; sleep 600 & wait"]})
        procs = cgroup.root_of(name) / "node1" / "cgroup.procs"
        members = [ProcessId.of(int(pid)) for pid in procs.read_text().split()]
        assert members
        assert all(member.running for member in members)
    deadline = time.monotonic() + 5
    while any(member.running for member in members) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(member.running for member in members)


def test_a_process_is_known_by_more_than_its_number() -> None:
    me = ProcessId.of(os.getpid())
    assert me.running
    assert not ProcessId(me.pid, me.started + 1).running
