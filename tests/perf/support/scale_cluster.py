"""A cluster of any size behind tests/support/apiserver.py: a process of its own, taking commands.

Run by scale.py. Writes its address and what each command did as JSON lines on stdout; reads
commands as JSON lines from stdin: how many changes, and how many in a second.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.apiserver import ApiServer

NAMESPACE = "production"
NODES = 200
_FIRST_SERVICE = 10 << 24 | 96 << 16
_FIRST_ENDPOINT = 10 << 24 | 128 << 16
_SPARE = 10 << 24 | 120 << 16  # addresses of pods that take another's place
PER_SLICE = 100  # --max-endpoints-per-slice of the controller manager
_LOADED_AT_ONCE = 1000

Json = dict[str, Any]


class Command(msgspec.Struct):
    """`count` changes of one endpoint each, of services from `first` on, `rate` in a second."""

    count: int
    rate: float
    first: int = 0


class Done(msgspec.Struct):
    """When each change was given to the server's watches, seconds of CLOCK_MONOTONIC."""

    services: list[int]
    sent: list[float]


class Ready(msgspec.Struct):
    """The first line: where the server is."""

    url: str


def dotted(number: int) -> str:
    """An IPv4 address."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def service_address(number: int) -> str:
    return dotted(_FIRST_SERVICE + number + 1)


def service(number: int) -> Json:
    """One Service, with the metadata an API server would send along."""
    address = service_address(number)
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {**_metadata(f"service-{number}"), "labels": {"app": f"service-{number}"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "selector": {"app": f"service-{number}"},
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    }


def slices_of(number: int, addresses: list[str]) -> list[Json]:
    """Its EndpointSlices, of as many endpoints as the controller puts into one."""
    starts = range(0, len(addresses), PER_SLICE)
    return [slice_of(number, addresses[at : at + PER_SLICE], at // PER_SLICE) for at in starts]


def slice_of(number: int, addresses: list[str], part: int = 0) -> Json:
    """One EndpointSlice: about 2 kB of JSON with ten endpoints, as a real one."""
    name = f"service-{number}"
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            **_metadata(f"{name}-abcd{part}"),
            "labels": {"kubernetes.io/service-name": name, "app": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{(number + place) % NODES}",
                "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": f"{name}-{place}"},
                "zone": f"zone-{place % 3}",
            }
            for place, address in enumerate(addresses)
        ],
    }


def endpoints(number: int, count: int) -> list[str]:
    """The addresses of a service's pods."""
    first = _FIRST_ENDPOINT + number * count
    return [dotted(first + place) for place in range(count)]


def _metadata(name: str) -> Json:
    return {
        "name": name,
        "namespace": NAMESPACE,
        "uid": "5f3b6a52-5d3c-4a68-9f53-0a7c7d8f1f52",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }


class Cluster:
    """The server with its objects; `run` makes changes."""

    def __init__(self, server: ApiServer, services: int, count: int) -> None:
        self._server = server
        self._services = services
        self._count = count
        self._turns: dict[int, int] = {}
        node = {"kind": "Node", "metadata": {"name": "node-0"}}
        server.put({**node, "status": {"addresses": []}})
        for first in range(0, services, _LOADED_AT_ONCE):
            numbers = range(first, min(first + _LOADED_AT_ONCE, services))
            server.put(*(service(n) for n in numbers))
            server.put(*(s for n in numbers for s in slices_of(n, endpoints(n, count))))
        server.settle()

    def run(self, command: Command) -> Done:
        """Replace one endpoint of one service after the other, evenly in time."""
        done = Done([], [])
        began = time.monotonic()
        for at in range(command.count):
            number = (command.first + at) % self._services
            changed = self._changed(number)
            delay = began + at / command.rate - time.monotonic()
            if delay > 0:
                time.sleep(delay)
            done.services.append(number)
            done.sent.append(time.monotonic())
            self._server.put(changed)
        return done

    def _changed(self, number: int) -> Json:
        """The last endpoint's place is taken by another pod, and by the first again next time."""
        turn = self._turns[number] = self._turns.get(number, 0) + 1
        addresses = endpoints(number, self._count)
        addresses[-1] = dotted(_SPARE + 2 * (number % 200_000) + turn % 2)
        return slices_of(number, addresses)[-1]


def commands() -> Iterator[Command]:
    """From stdin, until it ends."""
    for line in sys.stdin.buffer:
        yield msgspec.json.decode(line, type=Command)


def say(value: msgspec.Struct) -> None:
    """One line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    services, count = map(int, sys.argv[1:3])
    with ApiServer() as server:
        cluster = Cluster(server, services, count)
        gc.collect()
        gc.freeze()
        say(Ready(server.url))
        for command in commands():
            say(cluster.run(command))


if __name__ == "__main__":
    main()
