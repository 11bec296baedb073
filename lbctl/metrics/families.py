"""The metrics that are read when somebody asks; those that parts count are in lbctl/instruments.py.

Each is declared here and nowhere else: docs/observability.md is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lbctl.instruments import Described

Value = float | int
Labels = TypeVar("Labels", bound=tuple[str, ...])


class Family(msgspec.Struct, frozen=True):
    """One metric and the names of its labels."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()

    def metric(self, values: Mapping[Labels, Value] | Value) -> Metric:
        """With its samples: one value, or by the labels' values."""
        make = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        found = make(self.name, self.help, labels=self.labels)
        if isinstance(values, Mapping):
            for labels, value in values.items():
                found.add_metric(labels, value)
        else:
            found.add_metric((), values)
        return found

    def text(self, lines: Sequence[str]) -> str:
        """As it is served, of samples that are written already, without its name: for thousands."""
        if not lines:
            return ""
        head = f"# HELP {self.name} {self.help}\n# TYPE {self.name} {self.kind}\n{self.name}"
        return head + f"\n{self.name}".join(lines) + "\n"


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family("gauge", name, text, labels)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family("counter", name, text, labels)


_PORT: Final = ("namespace", "name", "port", "protocol")

# The agent
BUILD: Final = _gauge("lbctl_build_info", "1, with the version that runs.", "version")
READY: Final = _gauge(
    "lbctl_ready", "1 if /readyz answers 200: the agent does everything it should."
)
HEALTHY: Final = _gauge(
    "lbctl_healthy", "1 if /healthz answers 200: load balancers may use this node."
)
CONDITION: Final = _gauge(
    "lbctl_condition", "Number of problems of this kind now; `lbctl status` describes them.", "kind"
)
SOURCE_CONNECTED: Final = _gauge(
    "lbctl_source_connected", "1 while every kind of object is being followed.", "source"
)
THREAD_RESTARTS: Final = _counter(
    "lbctl_thread_restarts_total", "Threads that ended or were stuck, and were replaced."
)
SOCKETS_CLOSED: Final = _counter(
    "lbctl_sockets_closed_total", "Sockets closed because their endpoint had gone."
)
TAKING_OVER: Final = _gauge("lbctl_taking_over", "1 while kube-proxy's rules are still there.")

# What is programmed
SERVICES: Final = _gauge("lbctl_services", "Services with a port that is served here.")
SERVICE_PORTS: Final = _gauge("lbctl_service_ports", "Service ports that are programmed.")
ENDPOINTS: Final = _gauge("lbctl_endpoints", "Pairs of service port and endpoint.")
NO_LOCAL: Final = _gauge(
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "Services whose traffic policy is Local and that have endpoints, but none on this node.",
    "traffic_policy",
)
PROGRAMS: Final = _gauge("lbctl_programs_loaded", "1 once the kernel has accepted the programs.")
PLACED: Final = _gauge(
    "lbctl_programs_placed", "1 once they are attached to every interface where that is possible."
)
GENERATIONS: Final = _gauge(
    "lbctl_program_generations",
    "Generations of programs that exist; two while one replaces the other.",
)
ATTACHED: Final = _gauge("lbctl_interfaces_attached", "Interfaces with programs.")
MISSING: Final = _gauge(
    "lbctl_interfaces_missing", "Interfaces that should have programs and have none.", "role"
)
ENTRIES: Final = _gauge(
    "lbctl_table_entries",
    "Entries in a map that can fill up; flow tables count cells, of which a flow has two or four.",
    "table",
)
ROOM: Final = _gauge("lbctl_table_room", "How many entries it has room for now.", "table")
MOST_ENTRIES: Final = _gauge(
    "lbctl_table_max_entries", "How many entries it can have after growing, if it grows.", "table"
)
PRESSURE: Final = _gauge(
    "lbctl_table_pressure_ratio", "Entries divided by the most it can have, 0 to 1.", "table"
)
EVICTED: Final = _counter(
    "lbctl_flows_evicted_total", "Flows that were removed from a full table to make room.", "table"
)
REFUSED: Final = _counter("lbctl_flows_refused_total", "New flows that found no room.", "table")

CORRECTIONS: Final = _counter(
    "lbctl_corrections_total",
    "Times that something was found changed by others and was repaired, by what it was.",
    "what",
)

# Traffic
DECISIONS: Final = _counter(
    "lbctl_decisions_total",
    "Packets that a decision was made about, by outcome and reason. Packets of established flows "
    "are not counted here.",
    *("verdict", "reason"),
)
FAST_OPEN: Final = _gauge(
    "lbctl_fast_path_open", "1 while packets may bypass the node's network stack."
)
PASSED: Final = _counter(
    "lbctl_fast_path_packets_total",
    "Packets of flows through services that bypassed the network stack.",
)
EVENTS_LOST: Final = _counter(
    "lbctl_flow_events_lost_total",
    "Events that a listener did not get, because the ring was full or the listener too slow.",
    "where",
)
LISTENERS: Final = _gauge(
    "lbctl_flow_event_listeners",
    "Listeners to events of flows: `lbctl observe`, pages of `lbctl ui`.",
)
FLOWS: Final = _gauge("lbctl_flows", "Live connections through services, by IP family.", "family")
CONNECTIONS: Final = _counter(
    "lbctl_service_connections_total",
    "Connections opened since the port was first programmed.",
    *_PORT,
)
ACTIVE: Final = _gauge("lbctl_service_active_connections", "Connections open now.", *_PORT)
PACKETS: Final = _counter(
    "lbctl_service_packets_total",
    "Packets; in is towards the endpoints. Packets of open connections are added at each sweep.",
    *(*_PORT, "direction"),
)
BYTES: Final = _counter(
    "lbctl_service_bytes_total",
    "Bytes of these packets; in is towards the endpoints.",
    *(*_PORT, "direction"),
)
OMITTED: Final = _gauge(
    "lbctl_service_ports_omitted",
    "Service ports without series of their own, because there are more than --metrics-services.",
)
ENDPOINT_SERVING: Final = _gauge(
    "lbctl_endpoint_serving",
    "1 if new connections go to the endpoint, 0 if it only keeps existing ones.",
    *(*_PORT, "endpoint"),
)
ENDPOINT_ACTIVE: Final = _gauge(
    "lbctl_endpoint_active_connections",
    "Connections open to the endpoint now.",
    *(*_PORT, "endpoint"),
)

FAMILIES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Family))


def described() -> list[Described]:
    """All of them."""
    return [Described(one.name, one.kind, one.labels, one.help) for one in FAMILIES]
