"""Services whose endpoint, on node2, answers clients straight back past node1."""

from __future__ import annotations

import socket
import time

from lbctl.addresses import format_endpoint, parse_address
from lbctl.inspect.flowfilter import FlowFilter
from lbctl.inspect.flows import FlowRow, list_flows
from lbctl.inspect.opened import open_instance
from lbctl.inspect.services import show
from lbctl.lab.cluster import Lab
from tests.lab.support.external import Exposed
from tests.lab.support.labs import TARGET, TCP, endpoint

BACKEND = "pod2"
WAYS = ("node1", "ingress", "external")
PATIENCE = 20.0  # seconds for agents to follow


def publish(
    lab: Lab,
    service: Exposed,
    mode: str = "dsr",
    members: tuple[str, ...] = (BACKEND,),
    target: int = TARGET,
) -> None:
    """Returns when both agents have it so."""
    endpoints = [endpoint(lab, member) for member in members]
    objects = service.objects(lab, endpoints, target=target)
    objects[0]["metadata"]["annotations"] = {"lbctl/forwarding": mode}
    lab.apply(service.name, objects)
    lab.wait_programmed(f"default/{service.name}", endpoints)
    deadline = time.monotonic() + PATIENCE
    while any(shown(lab, node.name, service) != mode for node in lab.nodes):
        assert time.monotonic() < deadline, "the agents do not follow"
        time.sleep(0.05)


def shown(lab: Lab, node: str, service: Exposed) -> str:
    with open_instance(lab.pin_dir(node)) as instance:
        return show(instance, f"default/{service.name}")[0].forwarding


def flows(
    lab: Lab, node: str, port: int, called: tuple[str, int], kind: socket.SocketKind
) -> list[FlowRow]:
    """Those of a client's port with what it has called."""
    protocol = socket.IPPROTO_TCP if kind == TCP else socket.IPPROTO_UDP
    where = format_endpoint(parse_address(called[0]), called[1])
    with open_instance(lab.pin_dir(node)) as instance:
        found = list_flows(instance, FlowFilter(protocol=protocol))
        return [
            row
            for row in found
            if row.client.rpartition(":")[2] == str(port) and row.address == where
        ]
