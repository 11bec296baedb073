"""What the demo talks to: the example manifests, and how endpoints leave and join them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from lbctl.errors import SourceError
from lbctl.lab import objects
from lbctl.lab.agents import PACKAGE_ROOT
from lbctl.lab.cluster import Lab
from lbctl.lab.objects import Endpoint, JsonObject, Port
from lbctl.lab.sessions import target

# In a checkout, and as installed.
_PLACES = (PACKAGE_ROOT / "examples", PACKAGE_ROOT / "lbctl" / "examples")

CLIENT = "pod6"


class Example(msgspec.Struct, frozen=True):
    """One service of the example manifests, and the traffic client that speaks its protocol."""

    name: str
    file: str
    mode: str  # of lbctl.lab.traffic
    port: Port
    pods: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"default/{self.name}"


WEB = Example("web", "web.yaml", "http", Port(80, 8080, "http"), ("pod1", "pod2", "pod3"))
DNS = Example("dns", "dns.yaml", "dns", Port(53, 5353, "dns", "UDP"), ("pod4", "pod5"))


class Way(msgspec.Struct, frozen=True):
    """One address of an example, and how to ask it."""

    example: Example
    family: str
    target: str

    @property
    def label(self) -> str:
        spoken = "HTTP" if self.example.mode == "http" else "DNS over UDP"
        return f"{self.example.name}, {spoken}, {self.family}"


def examples_directory() -> Path:
    """Where the example manifests lie; SourceError if they are not installed."""
    for place in _PLACES:
        if (place / WEB.file).is_file():
            return place
    raise SourceError(f"there are no example manifests at {_PLACES[0]}", "Run it in a checkout.")


def ways() -> list[Way]:
    """Every address of the examples, read from their manifests."""
    return [way for example in (WEB, DNS) for way in _ways_of(example)]


def _ways_of(example: Example) -> Iterator[Way]:
    spec = _documents(example)[0]["spec"]
    for family, address in zip(spec["ipFamilies"], spec["clusterIPs"], strict=True):
        yield Way(example, family, target(address, example.port.port))


def set_endpoints(lab: Lab, example: Example, pods: list[str]) -> None:
    """Make `pods` the endpoints of a service, as its EndpointSlice controller would."""
    found = [pod for pod in lab.pods if pod.name in pods]
    items: list[JsonObject] = []
    for document in _documents(example):
        if document["kind"] == "EndpointSlice":
            family = document["addressType"]
            made = objects.endpoint_slice(
                example.name, [example.port], [Endpoint(pod) for pod in found], family
            )
            document = made | {"metadata": document["metadata"]}
        items.append(document)
    lab.apply(example.file, items)


def _documents(example: Example) -> list[dict[str, Any]]:
    text = (examples_directory() / example.file).read_text()
    return [document for document in yaml.safe_load_all(text) if document]
