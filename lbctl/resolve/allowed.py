"""Which addresses an object may not take, whatever it says.

Whoever may write Services in one namespace chooses external IPs that hold on every node. What can
be no service's is refused here, before anything is planned.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbctl.addresses import (
    Prefix,
    format_address,
    format_endpoint,
    is_loopback,
    special_use,
)
from lbctl.model.records import ObjectKey, Service
from lbctl.resolve.node import NodeFacts
from lbctl.resolve.ports import FrontendKind

# Of every node, by which the API server reaches it (logs, exec). No service has business there.
KUBELET_PORT = 10250


class Allowed:
    """The addresses of one service, judged once for all of its ports."""

    def __init__(
        self, service: Service, node: NodeFacts, reserved: Mapping[int, ObjectKey]
    ) -> None:
        """`reserved`: node ports at which load balancers ask how a service is, and which."""
        self._node = node
        self._reserved = reserved
        self._refused: dict[tuple[int, bytes], str] = {}
        for kind, addresses in (
            (FrontendKind.CLUSTER_IP, service.cluster_ips),
            (FrontendKind.EXTERNAL_IP, service.external_ips),
            (FrontendKind.LOAD_BALANCER, service.ingress_ips),
        ):
            for address in addresses:
                why = _why_not(address, kind, node)
                if why:
                    self._refused[kind, address] = f"{format_address(address)} is not served: {why}"

    def why_not(self, address: bytes, port: int, kind: int) -> str:
        """A sentence, empty if the service may have it."""
        if self._refused:
            named = FrontendKind.LOAD_BALANCER if kind & FrontendKind.LOAD_BALANCER else kind
            if (named, address) in self._refused:
                return self._refused[named, address]
        if kind == FrontendKind.CLUSTER_IP:
            return ""
        what = ""
        if (address, port) in self._node.api_places:
            what = "there is the API server that the agent uses"
        elif self._node.has(address) or is_loopback(address):
            what = self._on_the_node(port)
        return f"{format_endpoint(address, port)} is not served: {what}" if what else ""

    def _on_the_node(self, port: int) -> str:
        """What listens at a port of the node, of those that no service may have."""
        if port == KUBELET_PORT or port in self._node.own_ports:
            return "it is a port of this node's own agents"
        owner = self._reserved.get(port)
        return f"it is the healthCheckNodePort of {owner}" if owner else ""


def _why_not(address: bytes, kind: int, node: NodeFacts) -> str:
    special = special_use(address)
    if special:
        return f"it is a {special} address"
    if kind == FrontendKind.CLUSTER_IP:
        return ""
    if kind == FrontendKind.EXTERNAL_IP and node.external_ip_cidrs:
        ranges = node.external_ip_cidrs
        if not any(address in prefix for prefix in ranges):
            return f"external IPs are those of --external-ip-cidr ({_listed(ranges)})"
    pods = next((prefix for prefix in node.pod_cidrs if address in prefix), None)
    return f"it is a pod's, of {pods}" if pods else ""


def _listed(ranges: tuple[Prefix, ...]) -> str:
    first = ", ".join(map(str, ranges[:3]))
    return f"{first} and {len(ranges) - 3} more" if len(ranges) > 3 else first
