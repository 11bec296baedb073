"""What the tests of the command line look at: a few services, written as an agent would write them,
into maps of any kind."""

import socket
from typing import Any

from lbctl.addresses import parse_address
from lbctl.datapath.tables import Tables
from lbctl.model.names import PortName
from lbctl.program import readback, writes
from lbctl.resolve.ports import Endpoint, Frontend, FrontendKind, ResolvedPort

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
WEB = "default/web:http/TCP/v4"
WEB6 = "default/web:http/TCP/v6"
DNS = "kube-system/kube-dns:dns/UDP/v4"
EMPTY = "default/empty/TCP/v4"


def port(
    name: str,
    protocol: int,
    frontends: list[tuple[str, int, int]],
    backends: list[tuple[str, int, bool]],
    **other: Any,
) -> ResolvedPort:
    """A resolved service port; backends are address, port, on this node."""
    cluster = tuple(sorted(Endpoint(parse_address(a), p, local) for a, p, local in backends))
    settings: dict[str, Any] = {
        "local_drop": False,
        "internal_local": False,
        "external_local": False,
        "affinity_seconds": 0,
        "source_ranges": (),
        "warnings": (),
        "hints": "",
    }
    return ResolvedPort(
        name=name,
        protocol=protocol,
        frontends=tuple(Frontend(parse_address(a), p, protocol, k) for a, p, k in frontends),
        cluster=cluster,
        local=tuple(endpoint for endpoint in cluster if endpoint.local),
        service=PortName.parse(name).owner,
        **settings | other,
    )


def example() -> list[ResolvedPort]:
    """Four service ports: dual-stack web, DNS, and one without endpoints."""
    ip, node = FrontendKind.CLUSTER_IP, FrontendKind.NODE_PORT
    return [
        port(
            WEB,
            TCP,
            [("10.96.0.1", 80, ip), ("192.0.2.1", 30080, node)],
            [("10.1.0.2", 8080, True), ("10.1.1.2", 8080, False)],
            external_local=True,
            affinity_seconds=10800,
        ),
        port(WEB6, TCP, [("fd00:96::1", 80, ip)], [("fd00:1::2", 8080, True)]),
        port(DNS, UDP, [("10.96.0.10", 53, ip)], [("10.1.0.3", 53, True)]),
        port(EMPTY, TCP, [("10.96.0.9", 80, ip)], []),
    ]


def populate(tables: Tables, *gone: str) -> dict[str, int]:
    """Programs the example (and removes `gone` again); returns ids by name."""
    planner, _ = readback.read(tables, 0.0)
    ports = {item.name: item for item in example()}
    writes.apply(planner.plan(ports, 1.0), tables)
    ids = {name: planner.services[name].id for name in ports}
    if gone:
        writes.apply(planner.plan(dict.fromkeys(gone), 2.0), tables)
    counters = tables.service_counters.records[ids[WEB]]
    counters["connections"], counters["packets_in"], counters["bytes_in"] = 3, 30, 3000
    counters["packets_out"], counters["bytes_out"] = 20, 200_000
    return ids
