"""A source of objects behind a Kubernetes API: three kinds, each followed by a thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec

from lbctl.addresses import format_address
from lbctl.instruments import Instruments
from lbctl.model.decode import NODES, SERVICES, SLICES
from lbctl.model.records import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    EndpointSlice,
    Node,
    ObjectKey,
    Service,
)
from lbctl.model.updates import SourceStatus, Update
from lbctl.sources.asking import ReflectorSettings, Resource
from lbctl.sources.client import ApiClient
from lbctl.sources.pace import Pace
from lbctl.sources.reflector import Reflector
from lbctl.sources.store import Store
from lbctl.threads import Beat, Watched

# What kube-proxy selects: neither headless services nor those of another proxy ever arrive.
_SELECTOR = {"labelSelector": f"!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"}
_LEAVES = 2.0


class KubernetesSource:
    """Services, endpoint slices and the own node, watched. A `Source`, see model/updates.py.

    `kubeconfig` None means the pod's service account. `api_server` replaces the address found
    there, so that the agent need not reach the API through a service it provides itself.
    """

    def __init__(
        self,
        node_name: str,
        *,
        kubeconfig: Path | None = None,
        api_server: str | None = None,
        settings: ReflectorSettings | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        """Raises ConfigError if there is no usable configuration."""
        self._settings = settings or ReflectorSettings()
        self._instruments = instruments or Instruments()
        self._client = ApiClient(kubeconfig, api_server, self._instruments)
        self._store = Store(node_name, parts=3, node_expected=True)
        self._expected = 0
        self._translated: dict[ObjectKey, str] = {}  # services whose address the API server has
        own_node = {"fieldSelector": f"metadata.name={node_name}"}
        slices = "/apis/discovery.k8s.io/v1/endpointslices"
        self.watched = [
            self._follow(Resource(SERVICES, Service, "/api/v1/services", _SELECTOR)),
            self._follow(Resource(SLICES, EndpointSlice, slices, _SELECTOR)),
            self._follow(Resource(NODES, Node, "/api/v1/nodes", own_node)),
        ]

    def _follow(self, resource: Resource[Any]) -> Watched:
        """A thread that starts with nothing, whatever happened to the one before, except for how
        often the server was asked."""
        settings = self._settings
        pace = Pace(
            settings.backoff_first, settings.backoff_limit, per_minute=settings.requests_per_minute
        )

        def work(beat: Beat) -> None:
            expected = self._expected if resource.record is Service else 0
            Reflector(
                resource,
                self._client,
                self._store,
                settings,
                pace,
                beat,
                expected,
                self._instruments,
            ).run()

        return Watched(f"watch of {resource.plural}", work, wake=self._store.wake)

    def expect(self, services: int) -> None:
        """Before `start`: so many are served already, by what an earlier agent left. A first list
        with less than half of them is asked for twice."""
        self._expected = services

    def start(self) -> None:
        """Begin to list and watch. Never fails: an API that is away may come."""
        for watched in self.watched:
            watched.start()

    def stop(self) -> None:
        """End the threads, bounded."""
        for watched in self.watched:
            watched.stop()
        until = time.monotonic() + _LEAVES
        ended = [watched.join(max(0.0, until - time.monotonic())) for watched in self.watched]
        if all(ended):
            self._store.close()
            self._client.close()

    def fileno(self) -> int:
        """Readable when `wait` would return something."""
        return self._store.fileno()

    def wait(self, timeout: float) -> Update | None:
        """What changed, after at most `timeout` seconds; None if nothing did."""
        update = self._store.wait(timeout)
        self._check_threads()
        if update is None:
            return None
        self._look_for_own_address(update)
        return msgspec.structs.replace(update, status=self._with_threads(update.status))

    def status(self) -> SourceStatus:
        """How the source is doing."""
        self._check_threads()
        return self._with_threads(self._store.status())

    def service_problems(self) -> dict[ObjectKey, str]:
        """By Service, what of the object cannot be read."""
        return self._store.problems_of(Service)

    def due(self) -> float | None:
        """When `status` has to be asked for at the latest, for the sake of the threads."""
        return min((at for w in self.watched if (at := w.due()) is not None), default=None)

    def read_again(self) -> None:
        """List everything anew; what is known stays until that is done."""
        for watched in self.watched:
            watched.begin_again()

    def api_places(self) -> frozenset[tuple[bytes, int]]:
        """Addresses and port of the API server, as far as known: no object may take these for
        itself."""
        port = self._client.port
        return frozenset((address, port) for address in self._client.addresses())

    def _check_threads(self) -> None:
        for watched in self.watched:
            watched.check()

    def _look_for_own_address(self, update: Update) -> None:
        """Whether the way to the API leads through a service, which this agent would have to serve
        before it can hear of it."""
        own = self._client.addresses()
        for key, value in update.services.items():
            self._translated.pop(key, None)
            service = value.service
            for address in service.cluster_ips if service else ():
                if address in own:
                    self._translated[key] = (
                        f"the API server's address {format_address(address)} is that of service "
                        f"{key}: give --api-server an address that needs no service"
                    )

    def _with_threads(self, status: SourceStatus) -> SourceStatus:
        failing = tuple(w.problem for w in self.watched if w.problem)
        restarts = sum(w.restarts for w in self.watched)
        problems = (*status.problems, *sorted(self._translated.values()))
        if not (failing or restarts or self._translated):
            return status
        return msgspec.structs.replace(
            status, failing=failing, restarts=restarts, problems=problems
        )
