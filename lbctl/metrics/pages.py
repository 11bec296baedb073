"""/metrics and /configz: pages of --metrics-bind-address, made in the thread of the HTTP server.

Nothing here is taken from the agent's loop but what it has left to be read, so no change waits for
a scrape; and whatever a scrape meets is an answer of status 500, never the end of the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

import msgspec
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from lbctl.config.settings import Settings
from lbctl.health.answers import JSON_HEADERS, Answer
from lbctl.instruments import Instruments
from lbctl.metrics import configz, snapshot
from lbctl.metrics.services import ServiceSeries
from lbctl.metrics.snapshot import Snapshot

_NOSNIFF = JSON_HEADERS[1]
_HEADERS = (("Content-Type", CONTENT_TYPE_PLAIN_0_0_4), _NOSNIFF)
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), _NOSNIFF)


class Pages:
    """What answers, by path."""

    def __init__(
        self,
        instruments: Instruments,
        services: ServiceSeries,
        look: Callable[[], Snapshot],
        settings: Callable[[], Settings],
    ) -> None:
        self._instruments = instruments
        self._services = services
        self._look = look
        self._settings = settings
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        self._log = structlog.get_logger()
        self.paths = {"/metrics": self.metrics, "/configz": self.configz}

    def metrics(self) -> Answer:
        """Everything, in Prometheus' text format."""
        return self._guarded(self._metrics)

    def configz(self) -> Answer:
        """The settings that hold."""
        return self._guarded(self._configz)

    def _metrics(self) -> Answer:
        of_services, text = self._services.scrape()
        found = CollectorRegistry(auto_describe=False)
        found.register(_Found([*snapshot.metrics(self._look()), *of_services]))
        registries = (self._instruments.registry, self._process, found)
        body = b"".join(map(generate_latest, registries)) + text.encode()
        return Answer(HTTPStatus.OK, body, _HEADERS)

    def _configz(self) -> Answer:
        body = msgspec.json.encode(configz.document(self._settings()))
        return Answer(HTTPStatus.OK, body, JSON_HEADERS)

    def _guarded(self, make: Callable[[], Answer]) -> Answer:
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - whatever it was: probes are answered here too
            self._instruments.scrape_faults.inc()
            self._log.exception("a page could not be built")
            text = f"{type(error).__name__}: {error}\n"
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, text.encode(), _TEXT)


class _Found(Collector):
    """Metrics that are there already, as prometheus-client wants them."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> list[Metric]:
        return self._found
