"""Services for a reconciler: the records of one port, and updates that bring them."""

from collections.abc import Iterable

import msgspec

from lbctl.addresses import parse_address
from lbctl.model.records import (
    Balancing,
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
from lbctl.reconcile.reconciler import Reconciler
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


def balanced(found: ServiceObjects, how: Balancing) -> ServiceObjects:
    """The same with another choice of endpoints."""
    assert found.service
    service = msgspec.structs.replace(found.service, balancing=how)
    return msgspec.structs.replace(found, service=service)


def update(*found: ServiceObjects, gone: Iterable[str] = (), complete: bool = True) -> Update:
    services = {o.service.key: o for o in found if o.service}
    services.update({ObjectKey("default", n): ServiceObjects(None) for n in gone})
    return Update(services, None, False, True, complete, SourceStatus())


class Clock:
    """What `time.monotonic` says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def sweep(reconciler: Reconciler, clock: Clock, seconds: float) -> None:
    """Time passes; what it lets a sweep free is given to those who wait, as the agent does it."""
    clock.now += seconds
    more = True
    while more:
        if reconciler.housekeeper.step(clock.now) and reconciler.freed():
            reconciler.apply(complete=True)
        more = reconciler.housekeeper.running()


def settle(reconciler: Reconciler, clock: Clock, rounds: int = 40) -> None:
    """Wait until nothing is written any more that waited for time to pass."""
    for _ in range(rounds):
        sweep(reconciler, clock, 11.0)
        due = reconciler.retry_at()
        if due is not None:
            clock.now = max(clock.now, due)
            reconciler.apply(complete=True)
        elif not reconciler.planner.backend_ids.resting + reconciler.planner.service_ids.resting:
            return
