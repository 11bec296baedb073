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
READY: Final = _gauge("lbctl_ready", "1 if /readyz answers 200: it does all that it is for.")
HEALTHY: Final = _gauge("lbctl_healthy", "1 if /healthz answers 200: load balancers may come.")
CONDITION: Final = _gauge(
    "lbctl_condition", "How many things of a kind are wrong; `lbctl status` names them.", "kind"
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
PROGRAMS: Final = _gauge("lbctl_programs_loaded", "1 once the kernel has taken the programs.")
PLACED: Final = _gauge(
    "lbctl_programs_placed", "1 once they are on every interface, where that was possible."
)
GENERATIONS: Final = _gauge(
    "lbctl_program_generations", "Generations of programs there are; two while one is replaced."
)
ATTACHED: Final = _gauge("lbctl_interfaces_attached", "Interfaces with programs.")
MISSING: Final = _gauge(
    "lbctl_interfaces_missing", "Interfaces that should have programs and have none.", "role"
)
ENTRIES: Final = _gauge(
    "lbctl_table_entries",
    "Entries of a map that can fill up; of flows, cells: each has two or four.",
    "table",
)
ROOM: Final = _gauge("lbctl_table_room", "How many entries it has room for now.", "table")
MOST_ENTRIES: Final = _gauge(
    "lbctl_table_max_entries", "How many it can have when it has grown, if it grows.", "table"
)
PRESSURE: Final = _gauge(
    "lbctl_table_pressure_ratio", "Entries to what it can have at most, 0 to 1.", "table"
)
EVICTED: Final = _counter(
    "lbctl_flows_evicted_total", "Flows that made room for others in a full table.", "table"
)
REFUSED: Final = _counter("lbctl_flows_refused_total", "Flows that found no room.", "table")

CORRECTIONS: Final = _counter(
    "lbctl_corrections_total",
    "Times that something of ours was found changed by others and was put right, by what it was.",
    "what",
)

# Traffic
DECISIONS: Final = _counter(
    "lbctl_decisions_total",
    "Packets about which something was decided, by what became of them and why. Packets of "
    "established flows are not among them.",
    *("verdict", "reason"),
)
FAST_OPEN: Final = _gauge(
    "lbctl_fast_path_open", "1 while packets may pass the node's network stack by."
)
PASSED: Final = _counter(
    "lbctl_fast_path_packets_total", "Packets that did, of flows through services."
)
EVENTS_LOST: Final = _counter(
    "lbctl_flow_events_lost_total",
    "Events that somebody who listened did not get: the ring had no room, or the listener was too "
    "slow.",
    "where",
)
LISTENERS: Final = _gauge("lbctl_flow_event_listeners", "Who listens: `lbctl observe`, pages.")
FLOWS: Final = _gauge("lbctl_flows", "Live connections through services, by IP family.", "family")
CONNECTIONS: Final = _counter(
    "lbctl_service_connections_total", "Connections begun since the port was programmed.", *_PORT
)
ACTIVE: Final = _gauge("lbctl_service_active_connections", "Connections there are now.", *_PORT)
PACKETS: Final = _counter(
    "lbctl_service_packets_total",
    "Packets; in is to the endpoints. Those of flows that live as of the last sweep.",
    *(*_PORT, "direction"),
)
BYTES: Final = _counter(
    "lbctl_service_bytes_total",
    "Bytes of these packets; in is to the endpoints.",
    *(*_PORT, "direction"),
)
OMITTED: Final = _gauge(
    "lbctl_service_ports_omitted",
    "Service ports without series of their own, since there are more than --metrics-services.",
)
ENDPOINT_SERVING: Final = _gauge(
    "lbctl_endpoint_serving",
    "1 if new connections go to the endpoint, 0 if it only keeps those it has.",
    *(*_PORT, "endpoint"),
)
ENDPOINT_ACTIVE: Final = _gauge(
    "lbctl_endpoint_active_connections", "Connections the endpoint has now.", *(*_PORT, "endpoint")
)

FAMILIES: Final = tuple(value for value in list(vars().values()) if isinstance(value, Family))


def described() -> list[Described]:
    """All of them."""
    return [Described(one.name, one.kind, one.labels, one.help) for one in FAMILIES]
