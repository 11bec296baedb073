"""The real kube-proxy as a peer: its configuration, when it has synced, and its stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from lbctl.bench import apiserver, kubeproxy
from lbctl.bench.apiserver import ApiServer
from lbctl.bench.dataset import Dataset
from lbctl.bench.options import Options
from lbctl.bench.records import Results, summary
from lbctl.cli import main
from lbctl.errors import UsageError
from tests.lab.support import fake_kube_proxy


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
    made = kubeproxy.configuration("nftables", Path("/k"), 1.0)
    assert made["mode"] == "nftables"
    assert kubeproxy.configuration("iptables-legacy", Path("/k"), 1.0)["mode"] == "iptables"
    assert made["conntrack"] == {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    }


@pytest.mark.parametrize(("peer", "mode"), [("iptables-nft", "iptables"), ("nftables", "nftables")])
@pytest.mark.parametrize(("seconds", "text"), [(1.0, "1s"), (0.1, "0.1s"), (0.001, "0.001s")])
def test_the_period_is_that_of_the_mode(peer: str, mode: str, seconds: float, text: str) -> None:
    made = kubeproxy.configuration(peer, Path("/k"), seconds)
    assert made[mode] == {"minSyncPeriod": text}


def test_the_period_is_the_real_ones_own_unless_asked_for() -> None:
    assert Options().min_sync_period == 1.0


@pytest.mark.parametrize("peer", kubeproxy.PEERS)
def test_the_stand_in_knows_the_configuration(tmp_path: Path, peer: str) -> None:
    path = tmp_path / "config.yaml"
    made = kubeproxy.configuration(peer, Path("/k"), 0.05)
    path.write_bytes(msgspec.yaml.encode(made))
    assert fake_kube_proxy.read_configuration(path).metrics_bind_address == kubeproxy.METRICS
    path.write_bytes(msgspec.yaml.encode({**made, "minSyncPeriod": "1s"}))
    with pytest.raises(msgspec.ValidationError, match="minSyncPeriod"):
        fake_kube_proxy.read_configuration(path)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        for item in Dataset(600, 2).all_objects("node", "10.65.0.1"):
            running.put(item)
        running.settle()
        yield running


def test_the_stand_in_hears_of_everything(server: ApiServer) -> None:
    """Of more services than a page has."""
    client, services, slices, version = fake_kube_proxy.start(server.url, "node")
    assert (len(services), len(slices)) == (600, 600)
    server.put(Dataset(600, 2).changed_slice(["10.0.0.1"]))
    changed = next(client.watch(fake_kube_proxy.SLICES, version))
    assert fake_kube_proxy.addresses(changed) == ["10.0.0.1"]


@pytest.mark.parametrize("kind", ["Service", "EndpointSlice", "ServiceCIDR", "Node"])
def test_the_stand_in_takes_no_list_that_says_something_else(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(apiserver.API_VERSIONS, kind, "wrong/v1")
    with pytest.raises(SystemExit, match=f"no kind {kind}List is registered for wrong/v1"):
        fake_kube_proxy.start(server.url, "node")


def test_the_stand_in_takes_no_event_that_says_something_else(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _, _, version = fake_kube_proxy.start(server.url, "node")
    monkeypatch.setitem(apiserver.API_VERSIONS, "EndpointSlice", "v1")
    server.put(Dataset(600, 2).changed_slice(["10.0.0.1"]))
    with pytest.raises(SystemExit, match="no kind EndpointSlice is registered for v1"):
        next(client.watch(fake_kube_proxy.SLICES, version))


def test_the_stand_in_takes_no_other_content_type(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apiserver, "CONTENT_TYPE", "text/plain")
    with pytest.raises(SystemExit, match="content type text/plain"):
        fake_kube_proxy.start(server.url, "node")


def test_the_stand_in_needs_its_node(server: ApiServer) -> None:
    with pytest.raises(SystemExit, match="no Node is called other"):
        fake_kube_proxy.start(server.url, "other")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 0", "is no kube-proxy: --version says ''"),
        ("echo kubectl 1.36", "is no kube-proxy: --version says 'kubectl 1.36'"),
        ("exit 3", "--version ended with exit code 3"),
    ],
)
def test_what_is_no_kube_proxy_is_said_at_once(tmp_path: Path, script: str, why: str) -> None:
    binary = tmp_path / "kube-proxy"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    done = CliRunner().invoke(main.command, ["bench", "--kube-proxy", str(binary)])
    assert done.exit_code == 2
    assert why in done.output
    assert "the binary of a Kubernetes release" in done.output


def test_a_period_needs_a_kube_proxy() -> None:
    done = CliRunner().invoke(main.command, ["bench", "--min-sync-period", "0.1"])
    assert done.exit_code == 2
    assert "--min-sync-period needs --kube-proxy" in done.output


def kube_proxy(tmp_path: Path) -> Path:
    binary = tmp_path / "kube-proxy"
    binary.write_text("#!/bin/sh\necho Kubernetes v1.36.2\n")
    binary.chmod(0o755)
    return binary


def test_a_file_holds_one_kube_proxy_with_one_period(tmp_path: Path) -> None:
    binary, results = kube_proxy(tmp_path), Results()
    kubeproxy.settle_on(results, binary, 1.0)
    assert results.about.machine["kube-proxy"] == "Kubernetes v1.36.2, minSyncPeriod 1s"
    results.add([summary("nftables", 1, "load_time", [1.0])])
    kubeproxy.settle_on(results, binary, 1.0)
    with pytest.raises(UsageError, match=r"minSyncPeriod 1s in .*minSyncPeriod 0.1s"):
        kubeproxy.settle_on(results, binary, 0.1)
    with pytest.raises(UsageError, match="would now be rules without kube-proxy"):
        kubeproxy.settle_on(results, None, 1.0)


def test_a_file_of_rules_takes_no_kube_proxy(tmp_path: Path) -> None:
    binary, results = kube_proxy(tmp_path), Results()
    results.add([summary("lbctl-tc", 1, "load_time", [1.0])])
    kubeproxy.settle_on(results, binary, 1.0)  # nothing is there of those peers
    results = Results()
    results.add([summary("iptables-nft", 1, "load_time", [1.0])])
    with pytest.raises(UsageError, match="are rules without kube-proxy in"):
        kubeproxy.settle_on(results, binary, 1.0)


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
    assert "cannot be combined" in done.output
