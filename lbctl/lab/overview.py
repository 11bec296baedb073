"""What a lab looks like right now: the records behind `lbctl lab status`."""

from __future__ import annotations

import msgspec

from lbctl.lab.cluster import Lab
from lbctl.lab.topology import Node, Outside, Pod


class AgentStatus(msgspec.Struct, frozen=True):
    """The agent last started on a node; it may have ended since."""

    pid: int
    running: bool
    log: str


class NodeStatus(msgspec.Struct, frozen=True):
    """A node. `agent` is None in a lab without agents."""

    name: str
    namespace: str
    addresses: tuple[str, str]
    pod_cidrs: tuple[str, str]
    zone: str
    pin_dir: str
    cgroup: str
    agent: AgentStatus | None


class PodStatus(msgspec.Struct, frozen=True):
    """A pod. `interface` is the node's end of its veth."""

    name: str
    namespace: str
    addresses: tuple[str, str]
    node: str
    interface: str
    cgroup: str


class OutsideStatus(msgspec.Struct, frozen=True):
    """The client that is no part of the cluster."""

    name: str
    namespace: str
    addresses: tuple[str, str]
    cgroup: str


class LabStatus(msgspec.Struct, frozen=True):
    """All of a lab. `phase` is "up", or "building" if `up` has not finished."""

    name: str
    phase: str
    cni: str
    manifests: str
    nodes: list[NodeStatus]
    pods: list[PodStatus]
    outside: OutsideStatus


def status_of(lab: Lab) -> LabStatus:
    """Collect the status of `lab`; only whether agents run is looked up, the rest is recorded."""
    return LabStatus(
        name=lab.name,
        phase=lab.state.phase,
        cni=lab.state.topology.cni,
        manifests=str(lab.paths.manifests),
        nodes=[_node(lab, node) for node in lab.nodes],
        pods=[_pod(lab, pod) for pod in lab.pods],
        outside=_outside(lab, lab.outside),
    )


def _node(lab: Lab, node: Node) -> NodeStatus:
    agent = lab.agent(node.name)
    log = str(lab.paths.log(node.name))
    return NodeStatus(
        name=node.name,
        namespace=node.namespace,
        addresses=node.addresses,
        pod_cidrs=node.pod_cidrs,
        zone=node.zone,
        pin_dir=str(lab.paths.pin_dir(node.name)),
        cgroup=str(lab.paths.cgroup(node)),
        agent=None if agent is None else AgentStatus(agent.pid, agent.running, log),
    )


def _pod(lab: Lab, pod: Pod) -> PodStatus:
    return PodStatus(
        name=pod.name,
        namespace=pod.namespace,
        addresses=pod.addresses,
        node=pod.node,
        interface=pod.interface,
        cgroup=str(lab.paths.cgroup(pod)),
    )


def _outside(lab: Lab, outside: Outside) -> OutsideStatus:
    return OutsideStatus(
        name=outside.name,
        namespace=outside.namespace,
        addresses=outside.addresses,
        cgroup=str(lab.paths.cgroup(outside)),
    )
