"""Services that are reached in every way there is, and who must answer by the rules.

The oracle knows nothing of the data path: it is the rules of shared/conformance in a few lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint, Port
from lbctl.lab.topology import Node, Outside, Pod
from tests.lab.support.labs import PORT, TARGET, addresses, endpoint

NODE_PORTS = 30000
SHORT = 0.4  # seconds after which an answer will not come any more
WAYS = ("cluster", "node1", "node2", "ingress", "external")


@dataclass(frozen=True)
class Exposed:
    """A service with node ports, an ingress and an external address, told apart by its number."""

    name: str
    number: int
    policy: str = "Cluster"

    @property
    def node_port(self) -> int:
        return NODE_PORTS + self.number

    def ingress(self, family: int) -> str:
        return (f"192.0.2.{self.number}", f"2001:db8:2::{self.number:x}")[family]

    def external(self, family: int) -> str:
        return (f"192.0.2.{100 + self.number}", f"2001:db8:2::1:{self.number:x}")[family]

    def where(self, lab: Lab, way: str, family: int) -> tuple[str, int]:
        """Address and port of one of WAYS."""
        if way == "cluster":
            return addresses(self.name)[family], PORT
        if way.startswith("node"):
            return lab.find(way).addresses[family], self.node_port
        return (self.ingress if way == "ingress" else self.external)(family), PORT

    def objects(
        self,
        lab: Lab,
        endpoints: Sequence[Pod | Endpoint],
        spec: Mapping[str, Any] | None = None,
        target: int = TARGET,
    ) -> list[dict[str, Any]]:
        ports = [
            Port(PORT, target, "tcp", "TCP", self.node_port),
            Port(PORT, target, "udp", "UDP", self.node_port),
        ]
        said = {
            "type": "LoadBalancer",
            "externalTrafficPolicy": self.policy,
            "externalIPs": [self.external(0), self.external(1)],
            **(spec or {}),
        }
        ingress = (self.ingress(0), self.ingress(1))
        return lab.service(self.name, ports, endpoints, spec=said, ingress=ingress)

    def publish(
        self,
        lab: Lab,
        members: Iterable[str],
        spec: Mapping[str, Any] | None = None,
        target: int = TARGET,
    ) -> None:
        """Make it lead to the members named, and wait until it does."""
        endpoints = [endpoint(lab, member) for member in members]
        lab.apply(self.name, self.objects(lab, endpoints, spec, target))
        lab.wait_programmed(f"default/{self.name}", endpoints)


@dataclass(frozen=True)
class Expected:
    """`seen` is the client's address as the backend sees it; empty: nobody answers."""

    seen: str


def receiver(lab: Lab, origin: str, way: str) -> Node:
    """The node that chooses the backend."""
    if way.startswith("node"):
        return lab.node(way)
    return node_of(lab, origin) or lab.node("node1")  # the way from outside leads there


def node_of(lab: Lab, member: str) -> Node | None:
    found = lab.find(member)
    if isinstance(found, Outside):
        return None
    return lab.node(found.node if isinstance(found, Pod) else found.name)


def expected(lab: Lab, policy: str, origin: str, way: str, backend: str, family: int) -> Expected:
    """What becomes of a connection from `origin` over `way` to a service with one backend."""
    node, home = receiver(lab, origin, way), node_of(lab, backend)
    by_uplink = node_of(lab, origin) != node
    outside = origin == "outside"
    if policy == "Local" and by_uplink and way != "cluster" and home != node:
        return Expected("")
    keeps = home == node or not by_uplink
    if way == "cluster" and not outside:
        keeps = True
    if origin == backend:
        keeps = False
    if keeps:
        return Expected(lab.find(origin).addresses[family])
    # A pod that reaches itself does so by way of its own link, whose address the node takes.
    bridged = origin == backend and not by_uplink and lab.state.topology.cni == "bridge"
    return Expected((node.pod_gateways if bridged else node.addresses)[family])
