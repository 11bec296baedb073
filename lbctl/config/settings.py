"""What the agent goes by. Each field of Settings is an option, declared here and nowhere else.

A new one needs its field here and the code that uses it. `python -m lbctl.config.document` then
writes it into docs/configuration.md and examples/agent-config.yaml.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lbctl.addresses import Prefix, parse_prefix
from lbctl.config.bind import (
    ANY4,
    HEALTHZ_PORT,
    LOOPBACK4,
    METRICS_PORT,
    Bind,
    parse_bind_or_off,
)
from lbctl.config.options import Option, declared
from lbctl.model.records import ALGORITHMS, FORWARDINGS, Algorithm, Forwarding
from lbctl.resolve.node import NodeSettings

_Pattern = Annotated[str, msgspec.Meta(min_length=1)]
# What no node comes near, and what the agent and the kernel can count still: the agent keeps a
# place for every service port that there may be.
_Services = Annotated[int, msgspec.Meta(ge=16, le=1 << 20)]
_Endpoints = Annotated[int, msgspec.Meta(ge=16, le=1 << 24)]
_Flows = Annotated[int, msgspec.Meta(ge=128, le=1 << 26)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]

DSR_PORT = 6080  # GUE, of which this is variant 1: an IP packet right behind the UDP header

_DEFAULT_ROOM = "by the machine's memory"


def _url(text: str) -> str:
    if text and not text.startswith(("https://", "http://")):
        raise ValueError(f"{text!r} is not a URL, like https://api.example:6443")
    return text


def _service_name(text: str) -> str:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise ValueError(f"{text!r} is not like default/web")
    return text


def _node_name(text: str) -> str:
    """As kube-proxy's hostnameOverride."""
    return text.strip().lower()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds: the command line over the file over the defaults (settle.py).

    Fields of NodeSettings are here by the same names.
    """

    # Where the objects come from

    manifests: Annotated[
        Path | None,
        Option(
            flag="--manifests",
            metavar="PATH",
            help="Serve the objects in this YAML or JSON file, or in the files of this directory, "
            "and follow changes.",
        ),
    ] = None
    kubeconfig: Annotated[
        Path | None,
        Option(
            flag="--kubeconfig",
            metavar="FILE",
            help="Serve the cluster that this file names. Without this and --manifests: the "
            "cluster whose pod the agent runs in.",
        ),
    ] = None
    file_kubeconfig: Annotated[
        Path | None,
        Option(
            kube_proxy="clientConnection.kubeconfig",
            help="The same. If the file does not exist, an agent in a pod uses its service "
            "account.",
        ),
    ] = None
    node_name: Annotated[
        str,
        Option(
            flag="--node-name",
            env="NODE_NAME",
            metavar="NAME",
            kube_proxy="hostnameOverride",
            default="the host's name",
            parse=_node_name,
            help="Name of this node's Node object.",
        ),
    ] = ""
    api_server: Annotated[
        str | None,
        Option(
            flag="--api-server",
            metavar="URL",
            field="apiServer",
            parse=_url,
            example="https://api.cluster.example:6443",
            help="Address of the API server. It must not be a service address, which the agent "
            "itself would have to translate.",
        ),
    ] = None

    # The cluster and the node

    service_cidrs: Annotated[
        tuple[Prefix, ...],
        Option(
            flag="--service-cidr",
            metavar="CIDR",
            field="serviceCIDRs",
            live=True,
            parse=parse_prefix,
            commas=True,
            example=("10.96.0.0/16", "fd00:10:96::/112"),
            help="Range of ClusterIPs, up to 4 per family. Packets to an address in it that no "
            "service has are dropped.",
        ),
    ] = ()
    cluster_cidrs: Annotated[
        tuple[Prefix, ...],
        Option(
            flag="--cluster-cidr",
            metavar="CIDR",
            kube_proxy="clusterCIDR",
            live=True,
            parse=parse_prefix,
            commas=True,
            help="Range of pod addresses.",
        ),
    ] = ()
    external_ip_cidrs: Annotated[
        tuple[Prefix, ...],
        Option(
            flag="--external-ip-cidr",
            metavar="CIDR",
            field="externalIPCIDRs",
            live=True,
            parse=parse_prefix,
            commas=True,
            default="anywhere",
            example=("192.0.2.0/24", "2001:db8::/64"),
            help="Range in which externalIPs of Services may be; others are not served. Set it "
            "unless you trust everybody who may create Services.",
        ),
    ] = ()
    algorithm: Annotated[
        Algorithm,
        Option(
            flag="--algorithm",
            field="algorithm",
            kube_proxy="ipvs.scheduler",
            live=True,
            example=ALGORITHMS[0],
            help="How endpoints are chosen, for Services without an annotation that says so "
            "(docs/semantics.md).",
        ),
    ] = ALGORITHMS[0]
    forwarding: Annotated[
        Forwarding,
        Option(
            flag="--forwarding",
            field="forwarding",
            live=True,
            example="dsr",
            help="How traffic from outside reaches endpoints on other nodes, for Services without "
            "an annotation that says so: with this node's address as source (snat), or "
            "encapsulated, so that the endpoint's node answers the client directly (dsr; "
            "docs/operations.md).",
        ),
    ] = FORWARDINGS[0]
    dsr_encapsulation: Annotated[
        Literal["udp", "ipip"],
        Option(
            flag="--dsr-encapsulation",
            field="dsrEncapsulation",
            live=True,
            example="udp",
            help="With DSR, what packets are encapsulated in: UDP, which clouds let through, or "
            "just IP. Nodes accept both.",
        ),
    ] = "udp"
    dsr_port: Annotated[
        _Port,
        Option(
            flag="--dsr-port",
            metavar="PORT",
            field="dsrPort",
            live=True,
            example=DSR_PORT,
            help="With DSR, the UDP port for encapsulated packets; the same on all nodes.",
        ),
    ] = DSR_PORT
    nodeport_addresses: Annotated[
        tuple[str, ...] | None,
        Option(
            kube_proxy="nodePortAddresses",
            live=True,
            help="Networks in which the node's addresses serve node ports, or the words primary, "
            "all, localhost.",
        ),
    ] = None
    masquerade_all: Annotated[
        bool,
        Option(
            kube_proxy="masqueradeAll",
            live=True,
            help="Whether all connections to ClusterIPs get the node's address as source.",
        ),
    ] = False
    pods_from_node_cidrs: Annotated[
        bool,
        Option(
            kube_proxy="detectLocalMode",
            live=True,
            help="Whether pods are recognised by the Node object's podCIDRs.",
        ),
    ] = False
    primary_addresses: Annotated[
        tuple[bytes, ...],
        Option(
            kube_proxy="bindAddress",
            live=True,
            help="The node's primary addresses, instead of the Node object's.",
        ),
    ] = ()
    timeouts: Annotated[
        tuple[tuple[str, float], ...],
        Option(
            kube_proxy="conntrack",
            live=True,
            help="How long flows without packets are kept.",
        ),
    ] = ()
    uplinks: Annotated[
        tuple[_Pattern, ...],
        Option(
            flag="--uplink",
            metavar="PATTERN",
            field="uplinks",
            live=True,
            default="by routes and node addresses",
            example=("eth*", "bond0"),
            help="Interface that leads to other machines.",
        ),
    ] = ()
    pod_interfaces: Annotated[
        tuple[_Pattern, ...],
        Option(
            flag="--pod-interface",
            metavar="PATTERN",
            field="podInterfaces",
            kube_proxy="detectLocal.interfaceNamePrefix",
            live=True,
            default="veths whose peer is in another namespace",
            example=("cali*", "eni*"),
            help="Interface of a pod.",
        ),
    ] = ()

    # The sockets of processes

    cgroup: Annotated[
        Path | None,
        Option(
            flag="--cgroup",
            metavar="DIR",
            default="all",
            help="Serve the sockets of processes in this cgroup and below.",
        ),
    ] = None
    socket_lb: Annotated[
        Literal["off", "host", "all"],
        Option(
            flag="--socket-lb",
            field="socketLB",
            example="host",
            help="Whose connections are sent to a backend as early as connect(): nobody's (off), "
            "those of the node's own network namespace (host), or pods' as well (all).",
        ),
    ] = "host"

    # Drivers

    xdp: Annotated[
        Literal["off", "auto", "on"],
        Option(
            flag="--xdp",
            field="xdp",
            example="off",
            help="Whether the drivers of uplinks forward packets for endpoints on other nodes: "
            "never (off), where the device can and nothing else on the node would act on them "
            "(auto), or wherever the device can (on; docs/operations.md).",
        ),
    ] = "off"
    xdp_devices: Annotated[
        tuple[_Pattern, ...],
        Option(
            flag="--xdp-device",
            metavar="PATTERN",
            field="xdpDevices",
            default="all uplinks",
            example=("eth*",),
            help="Uplink that --xdp may use.",
        ),
    ] = ()

    # What the agent offers and occupies

    healthz: Annotated[
        Bind | None,
        Option(
            flag="--healthz-bind-address",
            metavar="ADDRESS:PORT",
            kube_proxy="healthzBindAddress",
            live=True,
            parse=parse_bind_or_off,
            help="Where to serve /healthz, /livez and /readyz; [::] means both families, off "
            "means nowhere.",
        ),
    ] = Bind(ANY4, HEALTHZ_PORT)
    metrics: Annotated[
        Bind | None,
        Option(
            flag="--metrics-bind-address",
            metavar="ADDRESS:PORT",
            kube_proxy="metricsBindAddress",
            live=True,
            parse=partial(parse_bind_or_off, default_port=METRICS_PORT),
            help="Where to serve /metrics, /configz and /proxyMode; [::] means both families, off "
            "means nowhere.",
        ),
    ] = Bind(LOOPBACK4, METRICS_PORT)
    metrics_services: Annotated[
        _Count,
        Option(
            flag="--metrics-services",
            metavar="N",
            field="metricsServices",
            live=True,
            example=1000,
            help="How many service ports may have series of their own in /metrics; if there are "
            "more, those with the most traffic have them.",
        ),
    ] = 1000
    metrics_endpoints_of: Annotated[
        tuple[str, ...],
        Option(
            flag="--metrics-endpoints-of",
            metavar="NAMESPACE/NAME",
            field="metricsEndpointsOf",
            live=True,
            commas=True,
            parse=_service_name,
            example=("default/web",),
            help="Service whose endpoints have series of their own in /metrics.",
        ),
    ] = ()
    events: Annotated[
        Literal["off", "on"],
        Option(
            flag="--events",
            env="LBCTL_EVENTS",
            field="events",
            example="on",
            help="Whether to write Events on Services, and on the Node, about what cannot be "
            "served as specified; the agent needs permission to write Events.",
        ),
    ] = "off"
    services: Annotated[
        _Services | None,
        Option(
            flag="--services",
            metavar="N",
            field="services",
            default=_DEFAULT_ROOM,
            example=65536,
            help="Most service ports that the tables may grow to hold.",
        ),
    ] = None
    endpoints: Annotated[
        _Endpoints | None,
        Option(
            flag="--endpoints",
            metavar="N",
            field="endpoints",
            default=_DEFAULT_ROOM,
            example=262144,
            help="Most endpoints that the tables may grow to hold.",
        ),
    ] = None
    flows: Annotated[
        _Flows | None,
        Option(
            flag="--flows",
            metavar="N",
            field="flows",
            default=_DEFAULT_ROOM,
            example=524288,
            help="Most flows per address family that the tables may grow to hold.",
        ),
    ] = None
    fast_path: Annotated[
        Literal["off", "on"],
        Option(
            flag="--fast-path",
            field="fastPath",
            example="off",
            help="Whether packets of established flows bypass the node's network stack while "
            "nothing there would act on them (docs/operations.md).",
        ),
    ] = "off"
    takeover: Annotated[
        Literal["auto", "on", "off"],
        Option(
            flag="--takeover",
            field="takeover",
            example="auto",
            help="When to leave alone TCP connections that kube-proxy may have made: while its "
            "rules are there (auto), always (on), never (off).",
        ),
    ] = "auto"
    log_format: Annotated[
        Literal["text", "json"],
        Option(
            flag="--log-format",
            field="logFormat",
            example="json",
            help="Format of the log on stderr.",
        ),
    ] = "text"
    verbose: Annotated[bool, Option(flag="--verbose", short="-v", help="Log every change.")] = False

    @property
    def node(self) -> NodeSettings:
        """What the rules need to know (docs/semantics.md)."""
        fields = msgspec.structs.fields(NodeSettings)
        return NodeSettings(**{field.name: getattr(self, field.name) for field in fields})


OPTIONS = declared(Settings)
