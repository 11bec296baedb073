"""Stands in for kube-proxy: takes its configuration, lists and watches the API, loads rules by the
tools in its PATH, and tells by metrics when it has.

`--version`, or `--config=FILE --hostname-override=NAME`, as the real one. It asks an API server as
1.36 was seen to ask (protobuf before JSON, lists as watches before pages, its selectors, an event
of its start), and ends where that one would wait for ever: at a list, an event or an answer that
does not say rightly what it is, and at a configuration with a field that it does not know.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlencode

import msgspec

from lbctl.bench import iptables_rules, nftables_rules
from lbctl.bench.dataset import Dataset

Json = dict[str, Any]

PROTOBUF = "application/vnd.kubernetes.protobuf"
PAGE = 500
VERSION = "Kubernetes v1.36.2-fake"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


class Resource(NamedTuple):
    """What is asked for, and what the answer has to call itself."""

    path: str
    kind: str
    api_version: str
    selectors: Mapping[str, str] = {}


SERVICES = Resource(
    "/api/v1/services",
    "Service",
    "v1",
    {
        "labelSelector": "!service.kubernetes.io/service-proxy-name",
        "fieldSelector": "spec.clusterIP!=None",
    },
)
SLICES = Resource(
    "/apis/discovery.k8s.io/v1/endpointslices",
    "EndpointSlice",
    "discovery.k8s.io/v1",
    {"labelSelector": "!service.kubernetes.io/headless"},
)
CIDRS = Resource("/apis/networking.k8s.io/v1/servicecidrs", "ServiceCIDR", "networking.k8s.io/v1")


def node(name: str) -> Resource:
    return Resource("/api/v1/nodes", "Node", "v1", {"fieldSelector": f"metadata.name={name}"})


def refuse(why: str) -> NoReturn:
    sys.exit(f"fake kube-proxy: {why}")


# The API


class Client:
    """Asks an API server, and believes only what says rightly what it is."""

    def __init__(self, server: str) -> None:
        self._server = server

    def list(self, resource: Resource) -> tuple[list[Json], str]:
        """All objects, and the version they are of."""
        self._list_as_watch(resource)
        items: list[Json] = []
        query = {"limit": str(PAGE), "resourceVersion": "0"}
        while True:
            with self._open(resource, query) as answer:
                page = json.load(answer)
            insist(page, f"{resource.kind}List", resource.api_version)
            items += page["items"]
            if not (token := page["metadata"].get("continue")):
                return items, page["metadata"]["resourceVersion"]
            query = {"limit": str(PAGE), "continue": token}

    def watch(self, resource: Resource, version: str) -> Iterator[Json]:
        """The objects of events since `version`."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        with self._open(resource, query) as events:
            for line in events:
                value = json.loads(line)["object"]
                insist(value, resource.kind, resource.api_version)
                yield value

    def tell(self) -> None:
        """Post the event of a start, as protobuf."""
        request = urllib.request.Request(
            f"{self._server}{EVENTS}",
            data=b"k8s\0",
            headers={"Content-Type": PROTOBUF, "Accept": f"{PROTOBUF}, */*"},
        )
        with urllib.request.urlopen(request) as answer:
            if answer.status != 201:
                refuse(f"an event was answered with {answer.status}")
            insist(decoded(answer), "Event", "events.k8s.io/v1")

    def _list_as_watch(self, resource: Resource) -> None:
        """A server may refuse that, by a Status; it is asked for a list then."""
        query = {"watch": "true", "sendInitialEvents": "true", "allowWatchBookmarks": "true"}
        try:
            self._open(resource, {**query, "resourceVersionMatch": "NotOlderThan"}).close()
        except urllib.error.HTTPError as error:
            with error:
                insist(decoded(error), "Status", "v1")
        else:
            refuse("lists as watches are not understood here, only their refusal")

    def _open(self, resource: Resource, query: Mapping[str, str]) -> HTTPResponse:
        text = urlencode({**resource.selectors, **query})
        request = urllib.request.Request(
            f"{self._server}{resource.path}?{text}", headers={"Accept": f"{PROTOBUF}, */*"}
        )
        answer: HTTPResponse = urllib.request.urlopen(request)
        typed(answer)
        return answer


def typed(answer: HTTPResponse | urllib.error.HTTPError) -> None:
    if (said := answer.headers.get("Content-Type")) != "application/json":
        refuse(f"the content type {said} was not asked for")


def decoded(answer: HTTPResponse | urllib.error.HTTPError) -> Json:
    typed(answer)
    found: Json = json.load(answer)
    return found


def insist(value: Json, kind: str, api_version: str) -> None:
    said = value.get("kind"), value.get("apiVersion")
    if said != (kind, api_version):
        refuse(f"no kind {said[0]} is registered for {said[1]}; wanted {kind} of {api_version}")


# The configuration


class Conntrack(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    max_per_core: int
    min: int
    tcp_established_timeout: str
    tcp_close_wait_timeout: str


class Periods(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    min_sync_period: str


class ClientConnection(msgspec.Struct, forbid_unknown_fields=True):
    kubeconfig: str


class Configuration(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The fields that the benchmark uses: a new one is one to look up in the real one."""

    api_version: str
    kind: str
    mode: str
    client_connection: ClientConnection
    conntrack: Conntrack
    metrics_bind_address: str
    detect_local_mode: str
    cluster_cidr: str = msgspec.field(name="clusterCIDR")
    iptables: Periods | None = None
    nftables: Periods | None = None


def read_configuration(path: Path) -> Configuration:
    found = msgspec.yaml.decode(path.read_bytes(), type=Configuration)
    periods = found.nftables if found.mode == "nftables" else found.iptables
    for text in [periods.min_sync_period] if periods else []:
        if not re.fullmatch(r"\d+(\.\d+)?(ms|s|m|h)", text):
            refuse(f"time: invalid duration {text!r}")
    return found


# The rules


metrics = {"last_timestamp_seconds": 0.0}


class Metrics(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        for name, value in metrics.items():
            full = f"kubeproxy_sync_proxy_rules_{name}"
            self.wfile.write(f"# TYPE {full} gauge\n{full} {value}\n".encode())


def restore(mode: str, text: str) -> None:
    argv = ["nft", "-f", "-"] if mode == "nftables" else ["iptables-restore", "--noflush"]
    subprocess.run(argv, input=text, text=True, check=True)


def addresses(item: Json) -> list[str]:
    return [endpoint["addresses"][0] for endpoint in item["endpoints"]]


def start(server: str, node_name: str) -> tuple[Client, list[Json], list[Json], str]:
    """Everything that is asked for before rules are written: services, slices and their version."""
    client = Client(server)
    if not client.list(node(node_name))[0]:
        refuse(f"no Node is called {node_name}")
    client.tell()
    client.list(CIDRS)
    services, _ = client.list(SERVICES)
    slices, version = client.list(SLICES)
    return client, services, slices, version


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        print(VERSION)
        return
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    config = read_configuration(Path(given["--config"]))
    kubeconfig = msgspec.yaml.decode(Path(config.client_connection.kubeconfig).read_bytes())
    server = kubeconfig["clusters"][0]["cluster"]["server"]
    host, _, port = config.metrics_bind_address.rpartition(":")
    serving = HTTPServer((host, int(port)), Metrics)
    threading.Thread(target=serving.serve_forever, daemon=True).start()

    client, services, slices, version = start(server, given["--hostname-override"])
    data = Dataset(len(services), len(slices[0]["endpoints"]))
    metrics.update(service_changes_total=len(services), endpoint_changes_total=len(slices))
    metrics.update(service_changes_pending=len(services))
    shape = nftables_rules if config.mode == "nftables" else iptables_rules
    restore(config.mode, shape.full(data))
    metrics.update(service_changes_pending=0, last_timestamp_seconds=1e9)
    known = data.backends(data.changing)
    for changed in client.watch(SLICES, version):
        new = addresses(changed)
        restore(config.mode, shape.change(data, known, new))
        known = new


if __name__ == "__main__":
    main()
