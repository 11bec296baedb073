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
            help="Serve the objects of a YAML or JSON file, or of a directory of them, and follow "
            "changes.",
        ),
    ] = None
    kubeconfig: Annotated[
        Path | None,
        Option(
            flag="--kubeconfig",
            metavar="FILE",
            help="Serve the cluster this file names. Without this and --manifests: the pod's own "
            "cluster.",
        ),
    ] = None
    file_kubeconfig: Annotated[
        Path | None,
        Option(
            kube_proxy="clientConnection.kubeconfig",
            help="The same, but in a pod the service account takes the place of a file that is "
            "not there.",
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
            help="Name of this node's object.",
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
            help="Address of the API server, so that reaching it does not depend on the service it "
            "is.",
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
            help="Range of ClusterIPs, up to 4 per family; what no service has in it is dropped.",
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
            help="Range of pods' addresses.",
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
            help="Range in which Services may have externalIPs; others are not served. Give one "
            "wherever not everybody who may write Services is to be trusted.",
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
            help="How endpoints are chosen of Services that do not say (docs/semantics.md).",
        ),
    ] = ALGORITHMS[0]
    forwarding: Annotated[
        Forwarding,
        Option(
            flag="--forwarding",
            field="forwarding",
            live=True,
            example="dsr",
            help="How traffic from outside gets to endpoints on other nodes, of Services that do "
            "not say: with this node's address as source, or whole, and answered straight back "
            "(docs/operations.md).",
        ),
    ] = FORWARDINGS[0]
    dsr_encapsulation: Annotated[
        Literal["udp", "ipip"],
        Option(
            flag="--dsr-encapsulation",
            field="dsrEncapsulation",
            live=True,
            example="udp",
            help="In what packets are sent whole: UDP, which clouds let pass, or IP alone. Nodes "
            "take off both.",
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
            help="UDP port at which such packets arrive; the same on all nodes.",
        ),
    ] = DSR_PORT
    nodeport_addresses: Annotated[
        tuple[str, ...] | None,
        Option(
            kube_proxy="nodePortAddresses",
            live=True,
            help="Networks whose addresses serve node ports, or the words primary, all, localhost.",
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
            help="Whether pods are known by the Node object's podCIDRs.",
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
            help="How long flows are remembered: seconds, by their names in the config record.",
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
            help="Interface to other machines.",
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
            help="Serve sockets of the processes in this cgroup and below.",
        ),
    ] = None
    socket_lb: Annotated[
        Literal["off", "host", "all"],
        Option(
            flag="--socket-lb",
            field="socketLB",
            example="host",
            help="Whose sockets are told a backend when they connect: nobody's, those of the "
            "node's own network namespace, pods' too.",
        ),
    ] = "host"

    # Drivers

    xdp: Annotated[
        Literal["off", "auto", "on"],
        Option(
            flag="--xdp",
            field="xdp",
            example="off",
            help="Whether packets for endpoints on other nodes are sent on by uplinks' drivers: "
            "not at all, where a device can and nobody else would have a say about them, whoever "
            "would (docs/operations.md).",
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
            help="Uplink whose driver may do that.",
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
            help="Where to answer /healthz, /livez and /readyz; [::] means both families, off "
            "none.",
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
            help="Where to answer /metrics, /configz and /proxyMode; [::] means both families, off "
            "none.",
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
            help="How many service ports have series of their own in /metrics: all, or those with "
            "the most traffic if there are more.",
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
            help="Whether Kubernetes is told, by Events on Services and the Node, what cannot be "
            "served as objects say; the agent needs the right to write them.",
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
            help="Tables grow to room for so many service ports.",
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
            help="Tables grow to room for so many endpoints.",
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
            help="Tables grow to room for so many flows per family.",
        ),
    ] = None
    fast_path: Annotated[
        Literal["off", "on"],
        Option(
            flag="--fast-path",
            field="fastPath",
            example="off",
            help="Whether packets of established flows pass the node's network stack by, while "
            "nothing there would have a say about them (docs/operations.md).",
        ),
    ] = "off"
    takeover: Annotated[
        Literal["auto", "on", "off"],
        Option(
            flag="--takeover",
            field="takeover",
            example="auto",
            help="Leave TCP connections alone that kube-proxy may own: while its rules are there, "
            "always, never.",
        ),
    ] = "auto"
    log_format: Annotated[
        Literal["text", "json"],
        Option(
            flag="--log-format",
            field="logFormat",
            example="json",
            help="How to write the log, on stderr.",
        ),
    ] = "text"
    verbose: Annotated[bool, Option(flag="--verbose", short="-v", help="Log every change.")] = False

    @property
    def node(self) -> NodeSettings:
        """What the rules need to know (docs/semantics.md)."""
        fields = msgspec.structs.fields(NodeSettings)
        return NodeSettings(**{field.name: getattr(self, field.name) for field in fields})


OPTIONS = declared(Settings)
