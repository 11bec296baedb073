"""What the agent's parts count themselves: counters and histograms, made once per agent.

A part is given `Instruments` and raises what is its own; lbctl/metrics serves all of them, beside
what it reads from maps and snapshots when it is asked. Names that begin with `kubeproxy_` and
`rest_client_` are kube-proxy's, with its labels and buckets, where the meaning is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# Nobody asks for these, and each counter would be two series.
disable_created_metrics()  # type: ignore[no-untyped-call] # of the package

_SYNC_BUCKETS: Final = [0.001 * 2**power for power in range(15)]
_REQUEST_BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_PROGRAMMING_BUCKETS: Final = (
    *(0.25, 0.5),
    *range(1, 60),
    *range(60, 120, 5),
    *range(120, 301, 30),
)


class Described(msgspec.Struct, frozen=True, order=True):
    """What there is to know of a metric before it has a value."""

    name: str  # as it is served: a counter's ends in _total
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    help: str


class Instruments:
    """Each may be raised from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.described: list[Described] = []
        self._syncs()
        self._objects()
        self._requests()
        self._own()

    def _syncs(self) -> None:
        self.sync_seconds = self._histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time that carrying changes into the maps took, each time there were some.",
            buckets=_SYNC_BUCKETS,
        )
        self.full_sync_seconds = self._histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "The same of those that looked at every service: the first, and after the node's "
            "facts changed or a map refused an update.",
            buckets=_SYNC_BUCKETS,
        )
        self.partial_sync_seconds = self._histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "The same of those that looked at what changed alone.",
            buckets=_SYNC_BUCKETS,
        )
        self.last_sync = self._gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When everything that was known was last written, since the epoch.",
        )
        self.last_queued = self._gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When there was last something to write, since the epoch.",
        )
        self.programming_seconds = self._histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of a pod or service (the annotation "
            "endpoints.kubernetes.io/last-change-trigger-time of its slice) until it was written. "
            "The clocks of two machines are in it.",
            buckets=_PROGRAMMING_BUCKETS,
        )

    def _objects(self) -> None:
        self.service_changes = self._counter(
            "kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services seen."
        )
        self.endpoint_changes = self._counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices seen."
        )
        self.service_changes_pending = self._gauge(
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not written yet.",
        )
        self.endpoint_changes_pending = self._gauge(
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that are not written yet.",
        )
        self.healthz = self._counter(
            "kubeproxy_proxy_healthz_total", "Answers to /healthz by their status.", ["code"]
        )
        self.livez = self._counter(
            "kubeproxy_proxy_livez_total", "Answers to /livez by their status.", ["code"]
        )

    def _requests(self) -> None:
        self.requests = self._counter(
            "rest_client_requests_total",
            "Requests to the API server by status; <error> where none came.",
            ["code", "method", "host"],
        )
        self.request_seconds = self._histogram(
            "rest_client_request_duration_seconds",
            "Time until the API server began to answer.",
            ["verb", "host"],
            _REQUEST_BUCKETS,
        )
        self.lists = self._counter(
            "lbctl_api_lists_total",
            "Lists begun, by kind of object. One each is the start; more are relists.",
            ["kind"],
        )
        self.watches = self._counter(
            "lbctl_api_watches_total",
            "Watches begun, by kind of object. Servers end each after some minutes.",
            ["kind"],
        )
        self.api_faults = self._counter(
            "lbctl_api_faults_total",
            "Lists and watches that failed, by kind of object; what is known is kept.",
            ["kind"],
        )

    def _own(self) -> None:
        self.events = self._counter(
            "lbctl_kubernetes_events_total",
            "Events for the API server: written, refused by it, or failed since no answer came.",
            ["result"],
        )
        for result in ("written", "refused", "failed"):
            self.events.labels(result)
        self.scrape_faults = self._counter(
            "lbctl_scrape_faults_total", "Scrapes that failed; the log says why."
        )

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        self.described.append(Described(name, "counter", tuple(labels), text))
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        self.described.append(Described(name, "gauge", (), text))
        return Gauge(name, text, registry=self.registry)

    def _histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = _SYNC_BUCKETS,
    ) -> Histogram:
        self.described.append(Described(name, "histogram", tuple(labels), text))
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
