"""What a KubeProxyConfiguration says, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbctl.addresses import parse_address, parse_prefix
from lbctl.config.bind import Bind, parse_bind
from lbctl.config.file import read
from lbctl.config.kubeproxyconfig import API_VERSION, KIND, KubeProxyConfig, parse
from lbctl.errors import ConfigError
from lbctl.resolve.node import NodeSettings

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
featureGates: null
healthzBindAddress: ""
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
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
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
mode: ""
nftables:
  masqueradeAll: false
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""


def _parse(**fields: Any) -> KubeProxyConfig:
    return parse({"apiVersion": API_VERSION, "kind": KIND, **fields})


def test_a_file_of_kubeadm(tmp_path: Path) -> None:
    path = tmp_path / "config.conf"
    path.write_text(KUBEADM)
    found = read(path).kube_proxy
    pods = (parse_prefix("10.244.0.0/16"), parse_prefix("fd00:10:244::/56"))
    assert found.node == NodeSettings(cluster_cidrs=pods)
    assert (found.mode, found.node_name) == ("", "")
    assert found.file_kubeconfig == Path("/var/lib/kube-proxy/kubeconfig.conf")
    assert (found.healthz, found.timeouts, found.pod_interfaces) == (None, (), ())
    assert found.ignored == ("iptables.minSyncPeriod",)


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
        ({"nodePortAddresses": ["primary", "localhost"]}, ("primary", "localhost")),
        ({"nodePortAddresses": ["all"]}, ("all",)),
        ({"iptables": {"localhostNodePorts": True}}, ("primary", "localhost")),
        (
            {"mode": "iptables", "iptables": {"localhostNodePorts": True}},
            ("0.0.0.0/0", "::/0", "localhost"),
        ),
        ({"mode": "nftables", "iptables": {"localhostNodePorts": True}}, None),
        ({"iptables": {"localhostNodePorts": False}}, None),
        (
            {
                "nodePortAddresses": ["10.0.0.0/8"],
                "iptables": {"localhostNodePorts": True},
            },
            ("10.0.0.0/8",),
        ),
        (
            {
                "nodePortAddresses": ["127.0.0.0/8", "10.0.0.0/8"],
                "iptables": {"localhostNodePorts": True},
            },
            ("127.0.0.0/8", "10.0.0.0/8", "localhost"),
        ),
    ],
)
def test_addresses_of_node_ports(fields: dict[str, Any], expected: tuple[str, ...] | None) -> None:
    assert _parse(**fields).node.nodeport_addresses == expected


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
    assert _parse(**fields).node.masquerade_all is expected


def test_local_mode_and_host_name() -> None:
    found = _parse(detectLocalMode="NodeCIDR", hostnameOverride=" Worker-7 ")
    assert found.node.pods_from_node_cidrs
    assert found.node_name == "worker-7"
    assert not _parse(detectLocalMode="ClusterCIDR").node.pods_from_node_cidrs


@pytest.mark.parametrize(
    ("text", "primary"), [("0.0.0.0", ()), ("::", ()), ("10.1.2.3", ("10.1.2.3",))]
)
def test_an_address_to_bind_to_is_the_nodes(text: str, primary: tuple[str, ...]) -> None:
    expected = tuple(map(parse_address, primary))
    assert _parse(bindAddress=text).node.primary_addresses == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"healthzBindAddress": "127.0.0.1"}, parse_bind("127.0.0.1:10256", 0)),
        ({"healthzBindAddress": "[fd00::1]:99"}, parse_bind("[fd00::1]:99", 0)),
        ({"bindAddress": "10.0.0.1"}, None),
        ({"bindAddress": "fd00::1"}, parse_bind("[::]:10256", 0)),
    ],
)
def test_where_health_is_asked_for(fields: dict[str, Any], expected: Bind | None) -> None:
    assert _parse(**fields).healthz == expected


def test_timeouts_of_conntrack() -> None:
    section = {
        "tcpEstablishedTimeout": "24h0m0s",
        "tcpCloseWaitTimeout": "1h30m",
        "udpTimeout": "250ms",
        "udpStreamTimeout": "0s",
        "tcpBeLiberal": True,
        "maxPerCore": 0,
    }
    found = _parse(conntrack=section)
    assert dict(found.timeouts) == {
        "established_timeout": 86400,
        "closing_timeout": 5400,
        "datagram_timeout": 0.25,
    }
    assert found.ignored == ("conntrack.tcpBeLiberal",)


def test_interfaces_of_pods() -> None:
    prefix = _parse(
        detectLocalMode="InterfaceNamePrefix", detectLocal={"interfaceNamePrefix": "cali"}
    )
    assert prefix.pod_interfaces == ("cali*",)
    odd = _parse(detectLocalMode="InterfaceNamePrefix", detectLocal={"interfaceNamePrefix": "a*"})
    assert odd.pod_interfaces == ("a[*]*",)
    bridge = _parse(detectLocalMode="BridgeInterface", detectLocal={"bridgeInterface": "cni0"})
    assert (bridge.pod_interfaces, bridge.ignored) == ((), ())


def test_what_means_nothing_is_named() -> None:
    found = _parse(
        clientConnection={"kubeconfig": "/x", "qps": 50, "burst": 100},
        configSyncPeriod="15m0s",
        featureGates={"Some": True},
        ipvs={"scheduler": "dh", "syncPeriod": "30s"},
        enableProfiling=True,
        oomScoreAdj=-999,
    )
    assert found.file_kubeconfig == Path("/x")
    assert found.ignored == (
        "clientConnection.burst",
        "clientConnection.qps",
        "configSyncPeriod",
        "enableProfiling",
        "featureGates",
        "ipvs.scheduler",
        "ipvs.syncPeriod",
        "oomScoreAdj",
    )


@pytest.mark.parametrize(
    ("mode", "scheduler", "algorithm"),
    [
        ("ipvs", "rr", "round-robin"),
        ("ipvs", "wrr", "round-robin"),
        ("ipvs", "lc", "least-connections"),
        ("ipvs", "wlc", "least-connections"),
        ("ipvs", "sed", "least-connections"),
        ("ipvs", "nq", "least-connections"),
        ("ipvs", "sh", "source-hash"),
        ("ipvs", "mh", "maglev"),
        ("", "mh", "maglev"),
        ("ipvs", "", "random"),
        ("ipvs", "lblc", "random"),
        ("nftables", "rr", "random"),
    ],
)
def test_the_scheduler_of_ipvs(mode: str, scheduler: str, algorithm: str) -> None:
    assert _parse(mode=mode, ipvs={"scheduler": scheduler}).node.algorithm == algorithm


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
        ({"nodePortAddresses": ["primary", "everywhere"]}, "nodePortAddresses: 'everywhere'"),
        ({"nodePortAddresses": ["10.0.0.0/40"]}, "nodePortAddresses: '10.0.0.0/40'"),
        ({"iptables": {"masqueradeAll": "yes"}}, "iptables.masqueradeAll: expected bool"),
        ({"nftables": []}, "nftables: expected object"),
        ({"bindAddress": "eth0"}, "bindAddress: 'eth0'"),
        ({"healthzBindAddress": "0.0.0.0:x"}, "healthzBindAddress: '0.0.0.0:x'"),
        ({"metricsBindAddress": "localhost"}, "metricsBindAddress: 'localhost'"),
        ({"conntrack": {"udpTimeout": "30"}}, "conntrack.udpTimeout: '30' is not a duration"),
        ({"conntrack": {"udpTimeout": "900000h"}}, "conntrack.udpTimeout: '900000h' is longer"),
        ({"conntrack": {"udpTimeout": "-1s"}}, "conntrack.udpTimeout: '-1s' is not"),
        ({"conntrack": {"udpTimeout": 30}}, "conntrack.udpTimeout: expected str"),
        ({"detectLocalMode": "BridgeInterface"}, "detectLocal.bridgeInterface"),
        ({"detectLocalMode": "InterfaceNamePrefix"}, "detectLocal.interfaceNamePrefix"),
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
        read(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("mode: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not YAML"):
        read(path)
    path.write_text(f"apiVersion: {API_VERSION}\nkind: {KIND}\nmode: 3\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: mode: expected str"):
        read(path)
