"""What kube-proxy leaves: named by doctor, removed on request, and in charge again after us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbctl import status
from lbctl.bench import iptables_rules, nftables_rules
from lbctl.bench.dataset import Dataset
from lbctl.host import leftovers
from lbctl.lab import namespace
from lbctl.lab.cluster import Lab
from tests.lab.support.labs import (
    PORT,
    TARGET,
    TCP,
    Responder,
    addresses,
    ask,
    connected,
    counted,
    publish,
)

pytestmark = pytest.mark.lab

NAME = f"se-left-{os.getpid()}"
SHAPE = Dataset(3, 2)
SERVICES, TOP_RULES = 3, 3
# Others': a chain that filters, the kubelet's, kube-router's, one for host ports.
OTHERS = """*filter
:FOREIGN - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j FOREIGN
-A OUTPUT -j FOREIGN
-A FOREIGN -d 192.0.2.9/32 -m comment --comment "not -j KUBE-SERVICES" -j DROP
COMMIT
*nat
:HOSTPORT - [0:0]
-A PREROUTING -j HOSTPORT
-A OUTPUT -j HOSTPORT
-A POSTROUTING -j HOSTPORT
COMMIT
"""
OTHERS6 = """*filter
:FOREIGN - [0:0]
-A FORWARD -j FOREIGN
COMMIT
"""
TABLE_OF_OTHERS = "table ip others {\n chain c {\n type filter hook forward priority 5;\n }\n}\n"


def in_namespace(name: str, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{name}", *command],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def must(name: str, *command: str, text: str = "") -> str:
    done = in_namespace(name, *command, text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lbctl(name: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return in_namespace(name, sys.executable, "-m", "lbctl", *words, text=text)


@pytest.fixture
def node() -> Iterator[str]:
    namespace.ip_batch([f"netns add {NAME}"])
    try:
        yield NAME
    finally:
        namespace.ip_batch([f"netns delete {NAME}"])


def rules(name: str) -> dict[str, str]:
    """What is there, by command, without times and counters."""
    found = {}
    for command, text in namespace.run_in(name, leftovers.saved).items():
        assert text is not None, f"{command} could not be asked"
        kept = [line for line in text.splitlines() if not line.startswith("#")]
        found[command] = "\n".join(kept)
    return found


def others(name: str) -> None:
    for variant in ("nft", "legacy"):
        must(name, f"iptables-{variant}-restore", "--noflush", text=OTHERS)
        must(name, f"ip6tables-{variant}-restore", "--noflush", text=OTHERS6)
    must(name, "nft", "-f", "-", text=TABLE_OF_OTHERS)


def kube_proxy(name: str) -> None:
    full = iptables_rules.full(SHAPE)
    for variant in ("nft", "legacy"):
        must(name, f"iptables-{variant}-restore", "--noflush", text=full)
        must(name, f"ip6tables-{variant}", "-t", "filter", "-N", "KUBE-FORWARD")
        must(name, f"ip6tables-{variant}", "-t", "filter", "-A", "FORWARD", "-j", "KUBE-FORWARD")
    must(name, "nft", "-f", "-", text=nftables_rules.full(SHAPE))


def checks(name: str) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(lbctl(name, "doctor", "-o", "json").stdout)}


def test_doctor_names_what_is_there(node: str) -> None:
    before = checks(node)
    assert all(before[f"kube-proxy {what}"]["ok"] for what in ("rules", "device", "settings"))
    kube_proxy(node)
    must(node, "iptables-nft", "-P", "FORWARD", "DROP")
    must(node, "ip", "link", "add", "kube-ipvs0", "type", "bridge")
    must(node, "sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    found = checks(node)
    said = str(found["kube-proxy rules"]["detail"])
    for command in ("iptables-nft, nat", "iptables-legacy, nat", "ip6tables-nft, filter"):
        assert command in said
    assert "table ip kube-proxy (nft)" in said
    assert "lbctl cleanup --kube-proxy" in str(found["kube-proxy rules"]["remedy"])
    assert found["forward policy"]["ok"] is False
    assert found["kube-proxy device"]["ok"] is False
    settings = found["kube-proxy settings"]
    assert "net.ipv4.conf.all.route_localnet=1" in str(settings["detail"])
    assert "net.ipv4.conf.all.route_localnet=0" in str(settings["remedy"])


def test_exactly_kube_proxys_rules_go(node: str) -> None:
    others(node)
    before = rules(node)
    kube_proxy(node)
    both = rules(node)
    listed = lbctl(node, "cleanup", "--kube-proxy", text="n\n")
    assert listed.returncode != 0
    assert rules(node) == both, "it was not confirmed"
    done = lbctl(node, "cleanup", "--kube-proxy", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout == listed.stdout
    assert rules(node) == before
    lines = done.stdout.splitlines()
    assert "nft delete table ip kube-proxy" in lines
    for variant in ("nft", "legacy"):
        chains = [x for x in lines if x.startswith(f"iptables-{variant} -t nat -F KUBE-S")]
        assert len(chains) == SERVICES * 3 + 1  # and KUBE-SERVICES
        jumps = [x for x in lines if x.startswith(f"iptables-{variant} -t nat -D ")]
        assert len(jumps) == TOP_RULES
    assert lbctl(node, "cleanup", "--kube-proxy", "--yes").stdout == ""


def test_a_chain_that_others_use_stays_with_what_it_leads_to(node: str) -> None:
    kube_proxy(node)
    service = iptables_rules.service_chain(SHAPE, 0)
    must(node, "iptables-nft", "-t", "nat", "-N", "HOSTPORT")
    must(node, "iptables-nft", "-t", "nat", "-A", "HOSTPORT", "-j", service)
    done = lbctl(node, "cleanup", "--kube-proxy", "--yes")
    assert done.returncode == 0, done.stderr
    left = must(node, "iptables-nft-save", "-t", "nat")
    wanted = {service, "KUBE-MARK-MASQ"}
    wanted |= {iptables_rules.endpoint_chain(SHAPE, 0, a) for a in SHAPE.backends(0)}
    chains = {line[1:].split()[0] for line in left.splitlines() if line.startswith(":KUBE")}
    assert chains == wanted
    for chain in wanted:
        assert f"{chain} (iptables-nft, table nat) stays" in done.stderr


def test_policy_and_sysctls_are_named_and_left(node: str) -> None:
    kube_proxy(node)
    must(node, "iptables-nft", "-P", "FORWARD", "DROP")
    must(node, "sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
    done = lbctl(node, "cleanup", "--kube-proxy", "--yes")
    assert "left alone: policy of FORWARD is DROP" in done.stderr
    assert ":FORWARD DROP" in must(node, "iptables-nft-save", "-t", "filter")
    assert must(node, "sysctl", "-n", "net.ipv4.conf.all.route_localnet").strip() == "1"
    assert "no agent of lbctl holds" in done.stderr


def test_force_is_not_about_kube_proxy(node: str) -> None:
    assert lbctl(node, "cleanup", "--kube-proxy", "--force").returncode == 2


def served_by_netfilter(service: str, backend: str) -> str:
    """One service with one endpoint, as kube-proxy's iptables mode has it."""
    return f"""*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d {service}/32 -p tcp -m tcp --dport {PORT} -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination {backend}:{TARGET}
COMMIT
"""


def translated(name: str) -> int:
    """Packets that the endpoint's rule has translated."""
    text = must(name, "iptables-nft-save", "-c", "-t", "nat")
    (line,) = (x for x in text.splitlines() if "--to-destination" in x)
    return int(line.lstrip("[").partition(":")[0])


def test_back_to_netfilter(make_lab: Callable[..., Lab]) -> None:
    """kube-proxy's rules return, our instance goes: new connections are netfilter's again."""
    lab = make_lab("back", nodes=2, pods=1)
    name, pins = lab.node("node1").namespace, lab.pin_dir("node1")
    backend = lab.find("pod2").addresses[0]
    with Responder() as responder:
        responder.serve(lab, ["pod2"])
        publish(lab, {"web": ["pod2"]})
        service = addresses("web")[0]
        must(name, "iptables-nft-restore", "--noflush", text=served_by_netfilter(service, backend))
        forwarded = counted(lab, "node1", "forwarded")
        with connected(lab, "pod1", service, TCP) as sock:
            assert ask(sock, "ours").server == "pod2"
        assert counted(lab, "node1", "forwarded") == forwarded + 1
        assert translated(name) == 0, "translated before netfilter saw it"

        lab.stop_agent("node1")
        assert lbctl(name, "cleanup", "--yes", "--pin-dir", str(pins)).returncode == 0
        with connected(lab, "pod1", service, TCP) as sock:
            assert ask(sock, "theirs").server == "pod2"
        assert translated(name) == 1
    assert not pins.exists()
    assert not status.path_of(pins).exists()
    shown = must(name, "ip", "-json", "link", "show")
    for link in json.loads(shown):
        for direction in ("ingress", "egress"):
            left = in_namespace(name, "tc", "filter", "show", "dev", link["ifname"], direction)
            assert "bpf" not in left.stdout
    if Path("/usr/sbin/bpftool").exists():
        assert "lbctl" not in must(name, "/usr/sbin/bpftool", "net", "show")
