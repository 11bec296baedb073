"""What a lab consists of: names and addresses of its nodes, pods and links. Pure."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from lbctl.errors import LbError, UsageError

Cni = Literal["route", "bridge"]

SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
# What tests may use as external and load-balancer addresses; the outside client routes it to node1.
EXTERNAL_CIDRS = ("192.0.2.0/24", "2001:db8:2::/64")
CLUSTER_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
FABRIC_GATEWAYS = ("172.18.0.1", "fd00:18::1")
FABRIC_PREFIXES = (24, 64)

MAX_NODES = 64
MAX_PODS = 200  # pod K is the K-th address after .10 of its node's /24

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


class Pod(msgspec.Struct, frozen=True):
    """One pod: a namespace behind a veth. `addresses` is (IPv4, IPv6)."""

    name: str
    namespace: str
    addresses: tuple[str, str]
    node: str
    number: int
    interface: str  # the host side of its veth, in the node's namespace

    @property
    def ipv4(self) -> str:
        return self.addresses[0]

    @property
    def ipv6(self) -> str:
        return self.addresses[1]


class Node(msgspec.Struct, frozen=True):
    """One node: a namespace with an uplink `eth0` into the fabric, which routes for its pods."""

    name: str
    namespace: str
    addresses: tuple[str, str]
    number: int
    zone: str
    pod_cidrs: tuple[str, str]

    @property
    def ipv4(self) -> str:
        return self.addresses[0]

    @property
    def ipv6(self) -> str:
        return self.addresses[1]

    @property
    def pod_gateways(self) -> tuple[str, str]:
        """What pods use as gateway with `--cni bridge`: the first address of each pod range."""
        return f"10.244.{self.number}.1", f"fd00:10:244:{self.number}::1"


class Outside(msgspec.Struct, frozen=True):
    """A machine that is no part of the cluster, on the same network as the nodes."""

    name: str
    namespace: str
    addresses: tuple[str, str]


class Topology(msgspec.Struct, frozen=True):
    """All of a lab. Every lab uses the same addresses: each lives in namespaces of its own."""

    name: str
    cni: Cni
    fabric: str  # the namespace with the bridge that joins nodes and the outside client
    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    outside: Outside

    @property
    def members(self) -> list[Node | Pod | Outside]:
        """Everything a program can be run in."""
        return [*self.nodes, *self.pods, self.outside]

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.fabric, *(member.namespace for member in self.members))

    def pods_of(self, node: Node) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.node == node.name)

    def find(self, name: str) -> Node | Pod | Outside:
        """The member called `name` ("node1", "pod3", "outside"); LbError names those there are."""
        for member in self.members:
            if name == member.name:
                return member
        known = ", ".join(member.name for member in self.members)
        raise LbError(f"lab {self.name!r} has no {name!r}", f"It has: {known}.", exit_code=3)


def check_name(name: str) -> str:
    """`name` if it can name a lab: it becomes part of namespace, cgroup and directory names."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a lab",
            "Use a letter, then up to 39 lower-case letters, digits and dashes.",
        )
    return name


def plan(name: str, nodes: int, pods: int, cni: Cni) -> Topology:
    """Lay out a lab of `nodes` nodes with `pods` pods on each.

    Pods are dealt out in turn: with two nodes, pod1, pod3, … run on node1 and pod2, pod4, … on
    node2, so that pod1 and pod2 are never neighbours.
    """
    check_name(name)
    if not 1 <= nodes <= MAX_NODES:
        raise UsageError(f"{nodes} nodes", f"A lab has 1 to {MAX_NODES} nodes (--nodes).")
    if not 0 <= nodes * pods <= MAX_PODS:
        raise UsageError(
            f"{pods} pods on each of {nodes} nodes",
            f"A lab has at most {MAX_PODS} pods in total (--pods counts those of one node).",
        )
    node_plans = tuple(_node(name, number) for number in range(1, nodes + 1))
    pod_plans = tuple(
        _pod(name, number, node_plans[(number - 1) % nodes])
        for number in range(1, nodes * pods + 1)
    )
    outside = Outside("outside", f"{name}-outside", ("172.18.0.200", "fd00:18::200"))
    return Topology(name, cni, f"{name}-fabric", node_plans, pod_plans, outside)


def with_pod(topology: Topology, node: Node) -> tuple[Topology, Pod]:
    """The same lab with one more pod, on `node`, numbered after the last."""
    number = 1 + max((pod.number for pod in topology.pods), default=0)
    if number > MAX_PODS:
        raise UsageError(f"pod{number} in lab {topology.name!r}", f"A lab has {MAX_PODS} pods.")
    pod = _pod(topology.name, number, node)
    return msgspec.structs.replace(topology, pods=(*topology.pods, pod)), pod


def without_pod(topology: Topology, pod: Pod) -> Topology:
    """The same lab without `pod`."""
    pods = tuple(other for other in topology.pods if other.name != pod.name)
    return msgspec.structs.replace(topology, pods=pods)


def _node(lab: str, number: int) -> Node:
    return Node(
        name=f"node{number}",
        namespace=f"{lab}-node{number}",
        addresses=(f"172.18.0.{10 + number}", f"fd00:18::{10 + number}"),
        number=number,
        zone="zone-a" if number % 2 else "zone-b",
        pod_cidrs=(f"10.244.{number}.0/24", f"fd00:10:244:{number}::/64"),
    )


def _pod(lab: str, number: int, node: Node) -> Pod:
    return Pod(
        name=f"pod{number}",
        namespace=f"{lab}-pod{number}",
        addresses=(
            f"10.244.{node.number}.{10 + number}",
            f"fd00:10:244:{node.number}::{10 + number}",
        ),
        node=node.name,
        number=number,
        interface=f"veth{number}",
    )
