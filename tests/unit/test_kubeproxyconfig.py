"""What a KubeProxyConfiguration says, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbctl.addresses import parse_prefix
from lbctl.errors import ConfigError
from lbctl.kubeproxyconfig import API_VERSION, KIND, KubeProxyConfig, load, parse
from lbctl.node import NodeSettings

# As kubeadm writes it: everything present, nearly everything unset.
KUBEADM = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 1s
  syncPeriod: 0s
kind: KubeProxyConfiguration
mode: ""
nftables:
  masqueradeAll: false
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
"""


def _parse(**fields: Any) -> KubeProxyConfig:
    return parse({"apiVersion": API_VERSION, "kind": KIND, **fields})


def test_a_file_of_kubeadm(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM)
    found = load(path)
    pods = (parse_prefix("10.244.0.0/16"), parse_prefix("fd00:10:244::/56"))
    assert found.settings == NodeSettings(cluster_cidrs=pods)
    assert (found.mode, found.hostname_override) == ("", "")
    assert found.ignored == ("bindAddress", "clientConnection", "iptables.minSyncPeriod")


def test_nothing_said_means_the_defaults() -> None:
    assert _parse() == KubeProxyConfig()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"nodePortAddresses": []}, None),
        ({"mode": "nftables"}, None),
        ({"mode": "iptables"}, ("0.0.0.0/0", "::/0")),
        ({"mode": "ipvs"}, ("0.0.0.0/0", "::/0")),
        ({"nodePortAddresses": ["primary"]}, ("primary",)),
        ({"nodePortAddresses": ["10.0.0.0/8"], "mode": "iptables"}, ("10.0.0.0/8",)),
    ],
)
def test_addresses_of_node_ports(fields: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    assert _parse(**fields).settings.nodeport_addresses == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"iptables": {"masqueradeAll": True}}, True),
        ({"nftables": {"masqueradeAll": True}}, True),
        ({"mode": "iptables", "iptables": {"masqueradeAll": True}}, True),
        ({"mode": "iptables", "nftables": {"masqueradeAll": True}}, False),
        ({"mode": "nftables", "nftables": {"masqueradeAll": True}}, True),
        ({"mode": "nftables", "iptables": {"masqueradeAll": True}}, False),
        ({"iptables": None}, False),
    ],
)
def test_masquerade_all(fields: dict[str, Any], expected: bool) -> None:
    assert _parse(**fields).settings.masquerade_all is expected


def test_local_mode_and_host_name() -> None:
    found = _parse(detectLocalMode="NodeCIDR", hostnameOverride="worker-7")
    assert found.settings.pods_from_node_cidrs
    assert found.hostname_override == "worker-7"
    assert not _parse(detectLocalMode="ClusterCIDR").settings.pods_from_node_cidrs


def test_fields_nobody_knows_are_named() -> None:
    found = _parse(surprise=1, nftables={"masqueradeAll": True, "color": "red"})
    assert found.ignored == ("nftables.color", "surprise")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "KubeletConfiguration"}, "KubeletConfiguration"),
        ({"apiVersion": "kubeproxy.config.k8s.io/v1"}, "apiVersion"),
        ({"mode": "kernelspace"}, "mode: 'kernelspace'"),
        ({"detectLocalMode": "Guess"}, "detectLocalMode: 'Guess'"),
        ({"clusterCIDR": "10.0.0.1"}, "clusterCIDR: '10.0.0.1'"),
        ({"clusterCIDR": 10}, "clusterCIDR: expected str"),
        ({"nodePortAddresses": "10.0.0.0/8"}, "nodePortAddresses: expected array"),
        ({"nodePortAddresses": ["primary", "10.0.0.0/8"]}, "nodePortAddresses: 'primary'"),
        ({"nodePortAddresses": ["10.0.0.0/40"]}, "nodePortAddresses: '10.0.0.0/40'"),
        ({"iptables": {"masqueradeAll": "yes"}}, "iptables.masqueradeAll: expected bool"),
        ({"nftables": []}, "nftables: expected object"),
    ],
)
def test_what_is_wrong_names_the_field(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _parse(**fields)


def test_what_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="kind"):
        parse({"apiVersion": API_VERSION})
    with pytest.raises(ConfigError, match="expected object"):
        parse(None)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("mode: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        load(path)
    path.write_text(f"apiVersion: {API_VERSION}\nkind: {KIND}\nmode: 3\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: mode: expected str"):
        load(path)
