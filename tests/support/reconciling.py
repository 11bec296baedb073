"""Services for a reconciler: the records of one port, and updates that bring them."""

from collections.abc import Iterable

from lbctl.addresses import parse_address
from lbctl.model.records import (
    EndpointSlice,
    Hints,
    ObjectKey,
    Protocol,
    Service,
    ServiceObjects,
    ServicePort,
    SliceEndpoint,
    SlicePort,
)
from lbctl.model.updates import SourceStatus, Update
from lbctl.resolve.node import NodeFacts

NODE = NodeFacts("node1")
NO_HINTS = Hints()


def objects(
    name: str, cluster_ip: str, backends: Iterable[str], port: int = 80, hints: Hints = NO_HINTS
) -> ServiceObjects:
    key = ObjectKey("default", name)
    endpoints = tuple(
        SliceEndpoint(parse_address(b), "node1", True, True, False, hints) for b in backends
    )
    return ServiceObjects(
        Service(
            key,
            "ClusterIP",
            cluster_ips=(parse_address(cluster_ip),),
            ports=(ServicePort("", Protocol.TCP, port),),
        ),
        (
            EndpointSlice(
                ObjectKey("default", f"{name}-1"),
                key,
                4,
                (SlicePort("", Protocol.TCP, 8080),),
                endpoints,
            ),
        ),
    )


def update(*found: ServiceObjects, gone: Iterable[str] = (), complete: bool = True) -> Update:
    services = {o.service.key: o for o in found if o.service}
    services.update({ObjectKey("default", n): ServiceObjects(None) for n in gone})
    return Update(services, None, False, True, complete, SourceStatus())
