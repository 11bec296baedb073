"""Builds a lab's namespaces, links, addresses and routes.

Each veth pair is created with both ends in their final namespaces, so nothing ever appears in the
root namespace, and every setting under /proc/sys is written inside a namespace of the lab.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from pathlib import Path

from lbctl.lab import namespace
from lbctl.lab.topology import (
    EXTERNAL_CIDRS,
    FABRIC_GATEWAYS,
    FABRIC_PREFIXES,
    SERVICE_CIDRS,
    Node,
    Outside,
    Pod,
    Topology,
)

# Pods of `--cni route` see one neighbour, the node, at addresses that need no address space.
LINK_GATEWAYS = ("169.254.1.1", "fe80::1")

# Duplicate address detection would hold every IPv6 address, link-local ones included, for a second.
_SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/dad_transmits": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0,
}
_NODE_SYSCTLS = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


def build(topology: Topology) -> None:
    """Create all of `topology`. LbError if a part fails; what was made stays for `remove`."""
    namespace.ip_batch([f"netns add {name}" for name in topology.namespaces])
    routers = {node.namespace for node in topology.nodes}
    for name in topology.namespaces:
        _set_sysctls(name, _SYSCTLS | _NODE_SYSCTLS if name in routers else _SYSCTLS)
    _configure(topology.fabric, fabric_commands(topology))
    for node in topology.nodes:
        _configure(node.namespace, node_commands(topology, node))
    for pod in topology.pods:
        _configure(pod.namespace, pod_commands(topology, pod))
    _configure(topology.outside.namespace, outside_commands(topology))
    # A real outside machine computes its checksums; a veth leaves them to nobody (XDP sees that).
    namespace.run_in(topology.outside.namespace, lambda: _disable_tx_checksums("eth0"))


def build_pod(topology: Topology, node: Node, pod: Pod) -> None:
    """Add one pod to what `build` has made; `topology` includes it."""
    namespace.ip_batch([f"netns add {pod.namespace}"])
    _set_sysctls(pod.namespace, _SYSCTLS)
    _configure(node.namespace, _node_side(topology, node, pod))
    _configure(pod.namespace, pod_commands(topology, pod))


def remove_pod(node: Node, pod: Pod) -> None:
    """Delete a pod's link, at once, and its namespace, which the kernel does a moment later."""
    delete = [f"link delete {pod.interface}"]
    namespace.run_in(node.namespace, lambda: namespace.ip_batch(delete, force=True))
    remove([pod.namespace])


def remove(names: list[str]) -> None:
    """Delete namespaces, and with them all they contain; those that do not exist are no error."""
    present = namespace.existing()
    doomed = [name for name in names if name in present]
    if doomed:
        namespace.ip_batch([f"netns delete {name}" for name in doomed], force=True)


def fabric_commands(topology: Topology) -> list[str]:
    """`ip` commands for the fabric: a bridge, which is also the default gateway to nowhere."""
    members: list[Node | Outside] = [*topology.nodes, topology.outside]
    commands = [
        "link set lo up",
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        "link set br0 up",
        *_addresses("br0", FABRIC_GATEWAYS, FABRIC_PREFIXES),
    ]
    for member in members:
        commands += [
            f"link add {member.name} type veth peer name eth0 netns {member.namespace}",
            f"link set {member.name} master br0 up",
        ]
    return commands


def node_commands(topology: Topology, node: Node) -> list[str]:
    """`ip` commands for a node: uplink, routes to the other nodes' pods, and links to its own."""
    commands = [
        "link set lo up",
        "link set eth0 up",
        *_addresses("eth0", node.addresses, FABRIC_PREFIXES),
        *(f"route add default via {gateway}" for gateway in FABRIC_GATEWAYS),
    ]
    for other in topology.nodes:
        if other.name != node.name:
            pairs = zip(other.pod_cidrs, other.addresses, strict=True)
            commands += [f"route add {cidr} via {address}" for cidr, address in pairs]
    if topology.cni == "bridge":
        commands += [
            "link add cni0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "link set cni0 up",
            *_addresses("cni0", node.pod_gateways, (24, 64)),
        ]
    for pod in topology.pods_of(node):
        commands += _node_side(topology, node, pod)
    return commands


def _node_side(topology: Topology, node: Node, pod: Pod) -> list[str]:
    link = pod.interface
    commands = [f"link add {link} type veth peer name eth0 netns {pod.namespace}"]
    if topology.cni == "bridge":
        return [*commands, f"link set {link} master cni0 up"]
    # The address of the link itself must not become the node's source address towards the pod.
    return [
        *commands,
        f"link set {link} up",
        f"address add {LINK_GATEWAYS[0]}/32 dev {link} scope link",
        f"address add {LINK_GATEWAYS[1]}/64 dev {link} nodad",
        f"route add {pod.ipv4}/32 dev {link} src {node.ipv4}",
        f"route add {pod.ipv6}/128 dev {link} src {node.ipv6}",
    ]


def pod_commands(topology: Topology, pod: Pod) -> list[str]:
    """`ip` commands for a pod: its addresses, and the node as its way to everything."""
    commands = ["link set lo up", "link set eth0 up"]
    if topology.cni == "bridge":
        node = next(node for node in topology.nodes if node.name == pod.node)
        commands += _addresses("eth0", pod.addresses, (24, 64))
        return commands + [f"route add default via {gateway}" for gateway in node.pod_gateways]
    return [
        *commands,
        *_addresses("eth0", pod.addresses, (32, 128)),
        f"route add {LINK_GATEWAYS[0]} dev eth0 scope link",
        f"route add default via {LINK_GATEWAYS[0]} dev eth0",
        f"route add default via {LINK_GATEWAYS[1]} dev eth0",
    ]


def outside_commands(topology: Topology) -> list[str]:
    """`ip` commands for the outside client, which reaches service addresses through node1."""
    ways = [*zip(SERVICE_CIDRS, topology.nodes[0].addresses, strict=True)]
    ways += zip(EXTERNAL_CIDRS, topology.nodes[0].addresses, strict=True)
    return [
        "link set lo up",
        "link set eth0 up",
        *_addresses("eth0", topology.outside.addresses, FABRIC_PREFIXES),
        *(f"route add {cidr} via {address}" for cidr, address in ways),
    ]


def _addresses(link: str, addresses: tuple[str, str], prefixes: tuple[int, int]) -> list[str]:
    ipv4, ipv6 = addresses
    return [
        f"address add {ipv4}/{prefixes[0]} dev {link}",
        f"address add {ipv6}/{prefixes[1]} dev {link} nodad",
    ]


def _configure(name: str, commands: list[str]) -> None:
    namespace.run_in(name, lambda: namespace.ip_batch(commands))


def _set_sysctls(name: str, settings: dict[str, int]) -> None:
    def write() -> None:
        for setting, value in settings.items():
            Path("/proc/sys", setting).write_text(str(value))

    namespace.run_in(name, write)


def _disable_tx_checksums(link: str) -> None:
    """What `ethtool -K LINK tx off` does; see linux/ethtool.h."""
    request = array.array("B", struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        ifreq = struct.pack("16sP", link.encode(), request.buffer_info()[0])
        fcntl.ioctl(control, _SIOCETHTOOL, ifreq + bytes(16))
