"""What doctor says of answers that go straight back."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbctl.host import straight


@pytest.mark.parametrize(
    ("shown", "ok"),
    [
        ({}, None),
        ({"iptables-save": None}, None),
        ({"iptables-save": "-A FORWARD -m conntrack --ctstate NEW -j DROP\n"}, True),
        ({"iptables-save": "-A INPUT -m conntrack --ctstate INVALID -j ACCEPT\n"}, True),
        ({"iptables-save": "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n"}, False),
        ({"nft": "  ct state invalid counter packets 0 bytes 0 drop\n"}, False),
        ({"nft": "  ct state { invalid, untracked } drop\n"}, False),
        ({"nft": "  ct state established accept\n  tcp dport 5 drop\n"}, True),
        ({"nft": None, "iptables-save": "-A X -m conntrack --ctstate INVALID -j DROP"}, False),
    ],
)
def test_rules_that_drop_what_conntrack_does_not_know(
    shown: dict[str, str | None], ok: bool | None
) -> None:
    answer = straight.invalid_dropped(shown)
    assert answer.ok is ok
    assert bool(answer.remedy) is (ok is False)


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    """An uplink, a pod's veth, overlays of two kinds."""
    network, conf = tmp_path / "net", tmp_path / "conf"
    for name, said, kind in (
        ("eth0", "INTERFACE=eth0", "1"),
        ("veth1", "INTERFACE=veth1", "1"),
        ("flannel.1", "DEVTYPE=vxlan\nINTERFACE=flannel.1", "1"),
        ("tunl0", "INTERFACE=tunl0", "768"),
    ):
        (network / name).mkdir(parents=True)
        (network / name / "uevent").write_text(said + "\n")
        (network / name / "type").write_text(kind + "\n")
        (conf / name).mkdir(parents=True)
        (conf / name / "rp_filter").write_text("0\n")
    (conf / "all").mkdir()
    (conf / "all" / "rp_filter").write_text("0\n")
    return conf, network


@pytest.mark.parametrize(
    ("values", "strict"),
    [
        ({}, ""),
        ({"eth0": 1, "veth1": 1}, ""),
        ({"flannel.1": 1}, "flannel.1"),
        ({"all": 1}, "flannel.1, tunl0"),
        ({"all": 1, "flannel.1": 2}, "tunl0"),
        ({"all": 2, "tunl0": 1}, ""),
    ],
)
def test_strict_filters_matter_on_overlays_alone(
    machine: tuple[Path, Path], values: dict[str, int], strict: str
) -> None:
    conf, network = machine
    for name, value in values.items():
        (conf / name / "rp_filter").write_text(f"{value}\n")
    answer = straight.strict_overlays(conf, network)
    assert answer.ok is not bool(strict)
    assert answer.detail == (f"strict on {strict}" if strict else "not strict on overlays")


FOUR = "Iface Destination Gateway Flags\neth0 00000000 0100A8C0 0003\n"
ONLY_LOCAL = "Iface Destination Gateway Flags\neth0 0000A8C0 00000000 0001\n"
SIX = f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003 eth0\n"
REFUSING = f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 00200200 lo\n"


@pytest.mark.parametrize(
    ("four", "six", "detail"),
    [
        (FOUR, SIX, "a default route of IPv4 and IPv6"),
        (FOUR, REFUSING, "a default route of IPv4"),
        (ONLY_LOCAL, SIX, "a default route of IPv6"),
        (ONLY_LOCAL, REFUSING, "no default route"),
        ("", None, "no default route"),
    ],
)
def test_ways_back(tmp_path: Path, four: str, six: str | None, detail: str) -> None:
    (tmp_path / "4").write_text(four)
    if six is not None:
        (tmp_path / "6").write_text(six)
    answer = straight.way_back({"IPv4": tmp_path / "4", "IPv6": tmp_path / "6"})
    assert (answer.detail, bool(answer.ok)) == (detail, detail != "no default route")
