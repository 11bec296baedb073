"""The services of a run: addresses by number, alike for all peers, and as Kubernetes objects."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from lbctl.errors import UsageError
from lbctl.lab.objects import JsonObject

SERVICE_CIDR = "10.96.0.0/12"
ENDPOINT_CIDR = "10.128.0.0/9"
CLIENT_CIDR = "10.64.0.0/16"  # the pods' range, as the rules are told
PORT, TARGET_PORT = 80, 8080
NAMESPACE = "bench"

_FIRST_SERVICE = int(ipaddress.ip_address("10.96.1.0"))
_FIRST_ENDPOINT = int(ipaddress.ip_address("10.128.1.0"))
_REPLACEMENTS = ("10.255.0.1", "10.255.0.2")
MOST_SERVICES = 1_000_000
MOST_ENDPOINTS = 8_000_000


class Dataset(msgspec.Struct, frozen=True):
    """`services` services of `endpoints` endpoints each, numbered from 0."""

    services: int
    endpoints: int

    def __post_init__(self) -> None:
        if not 1 <= self.services <= MOST_SERVICES:
            raise UsageError(f"--services: {self.services} is not between 1 and {MOST_SERVICES}")
        if not 1 <= self.endpoints <= MOST_ENDPOINTS // self.services:
            raise UsageError(
                f"--endpoints: {self.services} services with {self.endpoints} endpoints each are "
                f"not between 1 and {MOST_ENDPOINTS} endpoints"
            )

    @property
    def changing(self) -> int:
        """The service whose endpoints are replaced: the one in the middle."""
        return self.services // 2

    def name(self, service: int) -> str:
        return f"svc-{service}"

    def address(self, service: int) -> str:
        return str(ipaddress.ip_address(_FIRST_SERVICE + service))

    def backends(self, service: int) -> list[str]:
        first = _FIRST_ENDPOINT + service * self.endpoints
        return [str(ipaddress.ip_address(first + n)) for n in range(self.endpoints)]

    def replacement(self, turn: int) -> str:
        """The only endpoint of the changing service after its change number `turn`."""
        return _REPLACEMENTS[turn % len(_REPLACEMENTS)]

    def targets(self, count: int) -> list[tuple[str, int]]:
        """Up to `count` services, evenly spaced over all: their mean position is the middle."""
        return self.targets_of(self._spread(count))

    def endpoint_targets(self, count: int) -> list[tuple[str, int]]:
        """The first endpoints of the same services: where one connects to without a service."""
        return [(self.backends(number)[0], TARGET_PORT) for number in self._spread(count)]

    def _spread(self, count: int) -> list[int]:
        count = min(count, self.services)
        return [(2 * i + 1) * self.services // (2 * count) for i in range(count)]

    def targets_of(self, services: Iterable[int]) -> list[tuple[str, int]]:
        return [(self.address(number), PORT) for number in services]

    # As Kubernetes objects

    def objects(self, service: int, backends: Sequence[str]) -> list[JsonObject]:
        """The Service and the EndpointSlice of one service, as an API server returns them."""
        name = self.name(service)
        port = {"name": "http", "port": PORT, "targetPort": TARGET_PORT, "protocol": "TCP"}
        address = self.address(service)
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": address,
                    "clusterIPs": [address],
                    "ipFamilies": ["IPv4"],
                    "ports": [port],
                },
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": f"{name}-1",
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "endpoints": [
                    {
                        "addresses": [backend],
                        "conditions": {"ready": True, "serving": True, "terminating": False},
                        "nodeName": "server",
                    }
                    for backend in backends
                ],
                "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
            },
        ]

    def all_objects(self, node: str, node_address: str) -> Iterator[JsonObject]:
        """Those of all services, and of a node called `node`."""
        yield {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node},
            "status": {"addresses": [{"type": "InternalIP", "address": node_address}]},
        }
        for number in range(self.services):
            yield from self.objects(number, self.backends(number))

    def changed_slice(self, backends: Sequence[str]) -> JsonObject:
        """The EndpointSlice of the changing service with other endpoints."""
        return self.objects(self.changing, backends)[1]
