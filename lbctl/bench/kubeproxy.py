"""The peers iptables and nftables by the real kube-proxy, where a binary of it is at hand.

It gets a KubeProxyConfiguration with its own defaults, but for what would change the machine
outside its network namespace (the size of the connection tracking table), and for the shortest time
between two syncs where the run asks for another one.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from lbctl.bench.daemon import NODE, Daemon
from lbctl.bench.dataset import CLIENT_CIDR, Dataset
from lbctl.bench.records import Results
from lbctl.bench.testbed import Testbed
from lbctl.errors import UsageError
from lbctl.lab import namespace

PEERS = ("iptables-nft", "iptables-legacy", "nftables")
METRICS = "127.0.0.1:10249"
_VERSION = re.compile(r"Kubernetes v\d+\.\d+\S*")
_TAKES = "It takes the binary of a Kubernetes release, for this machine's architecture."
_ASK_TIMEOUT = 5.0
_VERSION_TIMEOUT = 10.0
# What iptables' two variants are called by; kube-proxy calls them without the variant's name.
_IPTABLES = [f"{ip}tables{what}" for ip in ("ip", "ip6") for what in ("", "-restore", "-save")]
_PREFIX = "kubeproxy_sync_proxy_rules_"


class KubeProxy(Daemon):
    """kube-proxy in one of its modes. It is ready when it has synced, with nothing pending."""

    poll = 0.05

    def __init__(self, name: str, binary: Path, min_sync_period: float) -> None:
        super().__init__(name)
        self._binary = binary
        self._min_sync_period = min_sync_period
        self._before = 0

    def unavailable(self) -> str:
        tool = "nft" if self.name == "nftables" else f"{self.name}-restore"
        return "" if shutil.which(tool) else f"{tool} is not installed"

    def _command(self, testbed: Testbed, data: Dataset, url: str) -> Sequence[str]:
        self._before = testbed.kernel_bytes(self.name) or 0
        directory = testbed.directory(self.name)
        config, kubeconfig = directory / "config.yaml", directory / "kubeconfig"
        made = configuration(self.name, kubeconfig, self._min_sync_period)
        config.write_bytes(msgspec.yaml.encode(made))
        kubeconfig.write_bytes(msgspec.yaml.encode(_kubeconfig(url)))
        path = f"PATH={self._tools(directory)}:/usr/sbin:/usr/bin:/sbin:/bin"
        return ["env", path, str(self._binary), f"--config={config}", f"--hostname-override={NODE}"]

    def _tools(self, directory: Path) -> Path:
        """A directory in which iptables is the variant that this peer is about."""
        tools = directory / "bin"
        tools.mkdir(exist_ok=True)
        variant = self.name.removeprefix("iptables-")
        for plain in _IPTABLES if self.name != "nftables" else ():
            head, _, what = plain.partition("-")
            found = shutil.which(f"{head}-{variant}{'-' if what else ''}{what}")
            if found:
                (tools / plain).unlink(missing_ok=True)
                (tools / plain).symlink_to(found)
        return tools

    def _ready(self, testbed: Testbed, data: Dataset) -> bool:
        text = namespace.run_in(testbed.sites[self.name].node, _metrics)
        return text is not None and has_synced(text, data.services)

    def kernel_memory(self) -> int | None:
        if self._running is None:
            return None
        now = self._running[0].kernel_bytes(self.name)
        return None if now is None else max(0, now - self._before)


def configuration(peer: str, kubeconfig: Path, min_sync_period: float) -> dict[str, object]:
    """The KubeProxyConfiguration of a peer."""
    mode = "nftables" if peer == "nftables" else "iptables"
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        # Said also where it is the default: 0, or nothing, would mean that.
        mode: {"minSyncPeriod": f"{min_sync_period:g}s"},
        "clusterCIDR": CLIENT_CIDR,
        "detectLocalMode": "ClusterCIDR",
        "metricsBindAddress": METRICS,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        # Zeroes leave the machine's own settings alone.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def _kubeconfig(url: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "current-context": "bench",
    }


def _metrics() -> str | None:
    try:
        with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=_ASK_TIMEOUT) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, OSError):
        return None


def has_synced(metrics: str, services: int) -> bool:
    """Whether kube-proxy's metrics say that it has heard of all services and programmed them."""
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics)
        if family.name.startswith(_PREFIX)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }
    return (
        values.get(f"{_PREFIX}last_timestamp_seconds", 0) > 0
        and values.get(f"{_PREFIX}service_changes_total", 0) >= services
        and values.get(f"{_PREFIX}endpoint_changes_total", 0) >= services
        and not values.get(f"{_PREFIX}service_changes_pending")
        and not values.get(f"{_PREFIX}endpoint_changes_pending")
    )


def version(binary: Path) -> str:
    """What `kube-proxy --version` says. UsageError if it cannot be run, or is something else."""
    try:
        done = subprocess.run(
            [binary, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--kube-proxy: {binary} cannot be run: {error}", _TAKES) from error
    if done.returncode:
        raise UsageError(
            f"--kube-proxy: {binary} --version ended with exit code {done.returncode}", _TAKES
        )
    said = done.stdout.strip()[:60]
    if not _VERSION.fullmatch(said):
        raise UsageError(
            f"--kube-proxy: {binary} is no kube-proxy: --version says {said!r}, not a version of "
            "Kubernetes",
            _TAKES,
        )
    return said


def settle_on(results: Results, binary: Path | None, min_sync_period: float) -> None:
    """Note in `results` who the peers are in this run. UsageError if what is there of them already
    is of others: figures of two kinds would stand in one row."""
    before = results.about.machine.get("kube-proxy", "")
    now = f"{version(binary)}, minSyncPeriod {min_sync_period:g}s" if binary else ""
    if before != now and any(record.peer in PEERS for record in results.records):
        raise UsageError(
            f"--resume: iptables and nftables are {before or 'rules without kube-proxy'} in "
            f"{results.path}, and would now be {now or 'rules without kube-proxy'}",
            "Give --kube-proxy and --min-sync-period as then, or --json for a file of its own.",
        )
    if now:
        results.about.machine["kube-proxy"] = now


def peers(binary: Path, min_sync_period: float) -> list[Daemon]:
    """Both iptables variants and nftables, by kube-proxy itself."""
    return [KubeProxy(name, binary, min_sync_period) for name in PEERS]
