"""The real kube-proxy as a peer: its configuration, and when it has synced."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lbctl.bench import kubeproxy
from lbctl.cli import main


def metrics(**values: float) -> str:
    """As kube-proxy writes them: counters, gauges, and histograms beside."""
    lines = ["# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram"]
    lines += ['kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="1"} 3']
    for name, value in values.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        full = f"kubeproxy_sync_proxy_rules_{name}"
        lines += [f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join([*lines, ""])


SYNCED = {
    "last_timestamp_seconds": 1.7e9,
    "service_changes_total": 10,
    "endpoint_changes_total": 10,
    "service_changes_pending": 0,
    "endpoint_changes_pending": 0,
}


def test_synced_when_everything_was_heard_of_and_nothing_is_pending() -> None:
    assert kubeproxy.has_synced(metrics(**SYNCED), 10)
    assert kubeproxy.has_synced(metrics(**SYNCED), 9)
    assert not kubeproxy.has_synced(metrics(**SYNCED), 11)


@pytest.mark.parametrize(
    "change",
    [
        {"last_timestamp_seconds": 0},
        {"service_changes_pending": 1},
        {"endpoint_changes_pending": 3},
        {"endpoint_changes_total": 0},
    ],
)
def test_not_synced(change: dict[str, float]) -> None:
    assert not kubeproxy.has_synced(metrics(**{**SYNCED, **change}), 10)


def test_no_metrics_yet() -> None:
    assert not kubeproxy.has_synced("", 0)


def test_the_configuration_leaves_the_machine_alone() -> None:
    """Connection tracking's size is the whole machine's, whatever the network namespace."""
    made = kubeproxy.configuration("nftables", Path("/k"))
    assert made["mode"] == "nftables"
    assert kubeproxy.configuration("iptables-legacy", Path("/k"))["mode"] == "iptables"
    assert made["conntrack"] == {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }


def test_what_cannot_be_run_is_said_at_once(tmp_path: Path) -> None:
    binary = tmp_path / "kube-proxy"
    binary.write_text("not a program")
    done = CliRunner().invoke(main.command, ["bench", "--kube-proxy", str(binary)])
    assert done.exit_code == 2
    assert f"--kube-proxy: {binary} cannot be run" in done.output


def test_rules_and_kube_proxy_exclude_each_other(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("*nat\n")
    done = CliRunner().invoke(
        main.command, ["bench", "--kube-proxy", "/bin/true", "--rules", str(rules)]
    )
    assert done.exit_code == 2
    assert "exclude each other" in done.output
