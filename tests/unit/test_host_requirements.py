"""What doctor reads from the node: rules, settings, interfaces, kernel and cgroups."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from ebpf.errors import MissingFeature
from ebpf.hooks import cgroup
from ebpf.instance import Instance
from ebpf.kernel import bpffs
from ebpf.layouts import Bundle
from lbctl.host import cgrouptree, leftovers, requirements
from lbctl.host import settings as host

KUBE = "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-ABC - [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n"
# The kubelet's, a network policy's, and kube-router's.
OF_OTHERS = """*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-NWPLCY-ABC - [0:0]
:KUBE-ROUTER-SERVICES - [0:0]
COMMIT
"""
CLEAN = ":INPUT DROP [0:0]\n:FORWARD ACCEPT [0:0]\n"
NFT = """table ip kube-proxy {
}
table inet f {
 chain c { type filter hook forward priority filter + 10; policy drop; }
}
"""


@pytest.mark.parametrize(
    ("shown", "ok"),
    [
        ({"iptables-save": KUBE}, False),
        ({"iptables-save": CLEAN, "nft": NFT}, False),
        ({"iptables-save": CLEAN}, True),
        ({"iptables-save": OF_OTHERS}, True),
        ({"iptables-save": None}, None),
    ],
)
def test_kube_proxy_rules(shown: dict[str, str | None], ok: bool | None) -> None:
    found = host.kube_proxy_rules(shown)
    assert found.ok is ok
    assert bool(found.remedy) is (ok is False)


def test_values_that_kube_proxy_writes_are_named_with_the_kernels(tmp_path: Path) -> None:
    root = tmp_path / "net"
    _settings(root, ipv4__conf__all__route_localnet="0", netfilter__nf_conntrack_max="1000")
    assert host.kube_proxy_settings(tmp_path).ok is True
    _settings(root, ipv4__conf__all__route_localnet="1")
    _settings(root, netfilter__nf_conntrack_tcp_timeout_established="86400")
    found = host.kube_proxy_settings(tmp_path)
    assert found.ok is False
    assert "net.ipv4.conf.all.route_localnet=1" in found.detail
    assert "net.ipv4.conf.all.route_localnet=0" in found.remedy
    assert "net.netfilter.nf_conntrack_tcp_timeout_established=432000" in found.remedy


def test_its_share_of_conntrack_goes_by_processors(tmp_path: Path) -> None:
    _settings(tmp_path / "net", netfilter__nf_conntrack_max="262144")
    assert leftovers.settings(tmp_path, cpus=2) == {}
    assert leftovers.settings(tmp_path, cpus=8) == {
        "net.netfilter.nf_conntrack_max": ("262144", "")
    }


@pytest.mark.parametrize(
    ("shown", "ok"),
    [
        ({"iptables-save": KUBE}, False),
        ({"nft": NFT}, False),
        ({"iptables-save": CLEAN}, True),
        ({"nft": None}, None),
    ],
)
def test_forward_policy(shown: dict[str, str | None], ok: bool | None) -> None:
    assert host.forward_policy(shown).ok is ok


def _settings(root: Path, **values: str) -> Path:
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    return root


def test_forwarding_names_the_family_that_is_off(tmp_path: Path) -> None:
    root = _settings(tmp_path, ipv4__ip_forward="1", ipv6__conf__all__forwarding="0")
    found = host.forwarding(root)
    assert found.ok is False
    assert found.detail.startswith("IPv6 ")
    assert "net.ipv6.conf.all.forwarding=1" in found.remedy
    _settings(tmp_path, ipv6__conf__all__forwarding="1")
    assert host.forwarding(root).ok is True


@pytest.mark.parametrize(
    ("general", "device", "ok"),
    [("0", "1", False), ("1", "0", False), ("2", "1", True), ("0", "0", True)],
)
def test_the_larger_reverse_path_setting_counts(
    tmp_path: Path, general: str, device: str, ok: bool
) -> None:
    root = _settings(
        tmp_path, ipv4__conf__all__rp_filter=general, ipv4__conf__eth0__rp_filter=device
    )
    assert host.reverse_path_filter(root).ok is ok


def test_networks_that_redirect_are_recognised() -> None:
    assert host.redirecting_network(["eth0", "cilium_host"]).ok is False
    assert host.redirecting_network(["eth0", "cni0"]).ok is True


@pytest.mark.parametrize(
    ("release", "ok"),
    [("6.1.0-18-amd64", True), ("6.18.2", True), ("5.15.0", False), ("10.0", True), ("?", None)],
)
def test_kernel_version(release: str, ok: bool | None) -> None:
    assert requirements.kernel_version(release).ok is ok


def test_machines_that_do_not_keep_the_order_of_stores_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(MissingFeature, match="aarch64"):
        Instance.create_or_open(tmp_path / "lbctl", Bundle("", "live", {}, {}, {}))
    assert not (tmp_path / "lbctl").exists()
    found = {item.name: item for item in requirements.check(Path("/nowhere/lbctl"))}
    assert found["machine"].ok is False
    assert found["machine"].required
    assert "kube-proxy" in found["machine"].remedy


def test_cgroup_mounts_are_read_from_mountinfo(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(
        "30 24 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
        "31 24 0:27 / /sys/fs/bpf rw - bpf bpf rw\n"
        "32 24 0:26 /../.. /host/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    assert cgroup.mounted(mountinfo) == [
        (Path("/sys/fs/cgroup/unified"), "/"),
        (Path("/host/cgroup"), "/../.."),
    ]


def test_the_own_memory_limit_is_found_wherever_the_tree_is_mounted(tmp_path: Path) -> None:
    """As in the pod of deploy/: by its own cgroup namespace a process is at `/`, but the mount is
    the host's."""
    pod = tmp_path / "kubepods" / "pod1"
    for directory, who, most in (
        (tmp_path, "1\n", None),
        (tmp_path / "kubepods", "", "max"),
        (pod, "", str(1 << 30)),
        (pod / "other", f"{os.getpid()}0\n", "4096"),
        (pod / "agent", f"0\n{os.getpid()}\n", str(2 << 30)),
    ):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.procs").write_text(who)
        if most is not None:
            (directory / "memory.max").write_text(f"{most}\n")
    assert cgrouptree.memory_limit(tmp_path) == 1 << 30  # the pod's is less than its container's
    (pod / "memory.max").write_text("max\n")
    assert cgrouptree.memory_limit(tmp_path) == 2 << 30
    (pod / "agent" / "memory.max").write_text("max\n")
    assert cgrouptree.memory_limit(tmp_path) is None
    (pod / "agent" / "cgroup.procs").write_text("")
    assert cgrouptree.memory_limit(tmp_path) is None


def test_a_part_of_the_cgroup_tree_is_told_from_all_of_it(tmp_path: Path) -> None:
    assert cgrouptree.is_whole(tmp_path)
    (tmp_path / "cgroup.type").write_text("domain\n")
    assert not cgrouptree.is_whole(tmp_path)


def test_doctor_says_that_only_a_part_of_the_tree_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "mounted", lambda: [(tmp_path, "/node-1")])
    (tmp_path / "cgroup.type").write_text("domain\n")
    (found,) = (x for x in requirements.check(tmp_path / "pins") if x.name == "cgroup v2")
    assert found.ok is False
    assert "only a part of the tree (/node-1)" in found.detail


@pytest.mark.parametrize("name", ["eth0", "eth0.100", "a%b", "%2E", "x.%25"])
def test_names_of_pins_are_reversible(name: str) -> None:
    assert "." not in bpffs.pin_name(name)
    assert bpffs.name_of_pin(bpffs.pin_name(name)) == name


@pytest.mark.parametrize(
    "error",
    [OSError("no such thing"), ValueError("no number"), subprocess.TimeoutExpired("iptables", 5)],
)
def test_a_check_that_cannot_run_is_an_answer(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> host.Answer:
        raise error

    monkeypatch.setattr(host, "CHECKS", {"odd": broken})
    found = requirements.check(Path("/nowhere/lbctl"))
    by_name = {item.name: item for item in found}
    assert by_name["odd"].ok is None
    assert str(error) in by_name["odd"].detail
    assert by_name["BPF file system"].ok is False
    assert "mount" in by_name["BPF file system"].remedy
