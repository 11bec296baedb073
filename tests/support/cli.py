"""What the tests of the command line look at: a few services and flows, written as an agent and the
programs would write them, into maps of any kind."""

import socket
import time
from typing import Any, Protocol

from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath.tables import HashTable, Tables
from lbctl.model.names import PortName
from lbctl.program import readback, writes
from lbctl.resolve.ports import Endpoint, Frontend, FrontendKind, ResolvedPort

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
WEB = "default/web:http/TCP/v4"
WEB6 = "default/web:http/TCP/v6"
DNS = "kube-system/kube-dns:dns/UDP/v4"
EMPTY = "default/empty/TCP/v4"


class Writable(HashTable, Protocol):
    """A table that takes single entries."""

    def put(self, key: bytes, value: bytes) -> object: ...


def port(
    name: str,
    protocol: int,
    frontends: list[tuple[str, int, FrontendKind]],
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


def _raw(address: str, width: int) -> bytes:
    return parse_address(address)[-width:]


def add_flow(
    table: Writable,
    proto: int,
    client: tuple[str, int],
    address: tuple[str, int],
    backend: tuple[str, int],
    *,
    service: int,
    state: int = consts.FLOW_ESTABLISHED,
    seen_as: int = 0,
    flags: int = 0,
    halves: str = "both",
    packets: int = 10,
) -> None:
    """Both entries of a flow as bpf_src/flow.h makes them; `seen_as` is the client's changed port,
    `halves` may be "forward" or "reply"."""
    width = table.spec.key.field("src").size
    seen_port = socket.htons(seen_as or client[1])
    client_port, port_, backend_port = (
        socket.htons(number) for number in (client[1], address[1], backend[1])
    )
    client_raw, raw, backend_raw = (_raw(item[0], width) for item in (client, address, backend))
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> consts.TICK_SHIFT
    common = {"service": service, "state": state, "seen": now, "packets": packets}
    if halves != "reply":
        table.put(
            table.spec.key.pack(
                src=client_raw, sport=client_port, dst=raw, dport=port_, proto=proto
            ),
            table.spec.value.pack(
                addr=backend_raw,
                port=backend_port,
                client_port=seen_port,
                flags=flags,
                bytes=1000,
                tick_packets=1,
                tick_bytes=100,
                **common,
            ),
        )
    if halves != "forward":
        table.put(
            table.spec.key.pack(
                src=backend_raw, sport=backend_port, dst=client_raw, dport=seen_port, proto=proto
            ),
            table.spec.value.pack(
                addr=raw,
                port=port_,
                client_port=client_port,
                flags=flags | consts.FLOW_REPLY,
                bytes=5000,
                **common,
            ),
        )


def entries(table: HashTable) -> int:
    """How many entries a table has."""
    return sum(len(keys) for keys, _ in table.batches())
