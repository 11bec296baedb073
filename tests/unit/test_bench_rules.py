"""Generated rules: the shape is kube-proxy's, and a change is written the way it writes one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lbctl.bench import iptables_rules, nftables_rules, saved
from lbctl.bench.dataset import Dataset
from lbctl.errors import UsageError
from lbctl.lab.objects import as_list
from lbctl.sources.documents import load_manifests

DATA = Dataset(20, 3)


def rules(text: str, chain: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"-A {chain} ")]


def test_every_service_has_a_rule_and_the_node_ports_come_last() -> None:
    found = rules(iptables_rules.full(DATA), "KUBE-SERVICES")
    assert len(found) == 21
    assert found[-1].endswith("KUBE-NODEPORTS")
    assert "-d 10.96.1.0 --dport 80 -j KUBE-SVC-" in found[0]


def test_endpoints_are_chosen_with_equal_chances() -> None:
    chain = iptables_rules.service_chain(DATA, 7)
    chances = re.findall(
        r"--probability ([\d.]+)", "\n".join(rules(iptables_rules.full(DATA), chain))
    )
    assert [float(chance) for chance in chances] == pytest.approx([1 / 3, 1 / 2])
    assert len(rules(iptables_rules.full(DATA), chain)) == 4


def test_chains_are_declared_and_their_names_fit() -> None:
    text = iptables_rules.full(DATA)
    declared = re.findall(r"^:(\S+) ", text, re.MULTILINE)
    used = set(re.findall(r" -j (KUBE-\S+)", text))
    assert used <= set(declared)
    assert max(map(len, declared)) <= 28
    assert len(set(declared)) == len(declared) - 2, "KUBE-SERVICES, KUBE-NODEPORTS: in two tables"


def test_a_partial_sync_writes_all_portals_but_one_service() -> None:
    text = iptables_rules.change(DATA, DATA.backends(DATA.changing), ["10.255.0.1"])
    assert len(rules(text, "KUBE-SERVICES")) == 21
    assert len(re.findall(r"^-A KUBE-SVC-", text, re.MULTILINE)) == 2
    assert len(re.findall(r"^-X KUBE-SEP-", text, re.MULTILINE)) == 3


def test_parts_are_the_whole() -> None:
    parts = iptables_rules.parts(DATA, 8)
    assert len(parts) == 3
    whole = sorted(line for line in iptables_rules.full(DATA).splitlines() if line != "COMMIT")
    lines = [line for part in parts for line in part.splitlines() if line != "COMMIT"]
    assert sorted(lines) == sorted([*whole, "*nat", "*nat"])


def test_nftables_finds_a_service_in_one_map() -> None:
    text = nftables_rules.full(DATA)
    assert len(re.findall(r"10\.96\.\d+\.\d+ \. tcp \. 80 : goto service-", text)) == 20
    assert text.count("numgen random mod 3 vmap") == 20
    assert text.count("dnat to ") == 60


def test_an_nftables_change_touches_one_service() -> None:
    text = nftables_rules.change(DATA, DATA.backends(DATA.changing), ["10.255.0.1"])
    assert "service-ips" not in text
    assert text.count("delete chain") == 3
    assert text.count("numgen random mod 1 vmap") == 1


def test_chain_names_of_nftables_fit() -> None:
    large = Dataset(1_000_000, 1)
    chain = nftables_rules.endpoint_chain(large, 999_999, "255.255.255.255")
    assert len(chain) < 128


@pytest.mark.parametrize(("services", "endpoints"), [(0, 1), (1, 0), (2_000_000, 1), (1000, 9000)])
def test_sizes_that_have_no_addresses_are_refused(services: int, endpoints: int) -> None:
    with pytest.raises(UsageError):
        Dataset(services, endpoints)


def test_targets_are_spread_around_the_middle() -> None:
    assert DATA.targets(1) == [(DATA.address(10), 80)]
    assert len(DATA.targets(100)) == 20
    assert DATA.targets(2) == [(DATA.address(5), 80), (DATA.address(15), 80)]


def test_objects_are_what_the_agent_reads(tmp_path: Path) -> None:
    path = tmp_path / "objects.json"
    path.write_bytes(as_list(list(DATA.all_objects("node", "10.65.1.1"))))
    found = load_manifests(path)
    assert len(found.services) == 20
    assert list(found.nodes) == ["node"]
    assert all(len(objects.slices) == 1 for objects in found.services.values())
    changed = DATA.changed_slice(["10.255.0.1"])
    assert changed["metadata"]["name"] == "svc-10-1"
    assert [endpoint["addresses"] for endpoint in changed["endpoints"]] == [["10.255.0.1"]]


def as_saved(text: str) -> str:
    """What iptables-save makes of a rule: the address first, with its length."""
    return re.sub(
        r"-A KUBE-SERVICES (.*) -m tcp -p tcp -d (\S+) --dport (\d+) ",
        r"-A KUBE-SERVICES -d \2/32 -p tcp \1 -m tcp --dport \3 ",
        text,
    )


@pytest.mark.parametrize("shape", [str, as_saved])
def test_saved_iptables_rules_are_understood(tmp_path: Path, shape: Callable[[str], str]) -> None:
    path = tmp_path / "rules"
    path.write_text(shape(iptables_rules.full(DATA)))
    found = saved.read(path)
    assert found.kind == "iptables"
    assert found.services == tuple((DATA.address(n), 80) for n in range(20))
    assert len(found.endpoints) == 60
    assert found.port == 8080


def test_saved_nftables_rules_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text(
        """table ip kube-proxy {
          map service-ips {
            type ipv4_addr . inet_proto . inet_service : verdict
            elements = { 10.96.0.1 . tcp . 443 : goto service-2QRHZV4L-default/kubernetes/tcp/https,
                         10.96.0.10 . udp . 53 : goto service-AAAAAAAA-kube-system/dns/udp/dns }
          }
          chain service-2QRHZV4L-default/kubernetes/tcp/https {
            numgen random mod 1 vmap { 0 : goto endpoint-X-default/k/tcp/https__10.1.0.2/6443 }
          }
        }
        """
    )
    found = saved.read(path)
    assert found.kind == "nftables"
    assert found.services == (("10.96.0.1", 443),)
    assert (found.endpoints, found.port) == (("10.1.0.2",), 6443)


def test_a_file_without_services_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rules"
    path.write_text("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n")
    with pytest.raises(UsageError, match="no TCP service"):
        saved.read(path)
