"""Load balancers with health-check node ports, as objects and as records."""

from __future__ import annotations

from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeFacts
from tests.support.k8s_objects import Json, as_service, as_slice, endpoint_slice, service

NODE = NodeFacts("worker-1")
KEY = ObjectKey("ns1", "svc1")


def balancer(name: str = "svc1", port: int = 32001, **spec: object) -> Json:
    given: Json = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port,
        **spec,
    }
    return service(name, **given)


def objects(value: Json, *endpoints: Json) -> ServiceObjects:
    found = as_service(value)
    return ServiceObjects(
        found, (as_slice(endpoint_slice(of=found.key.name, endpoints=endpoints)),)
    )
