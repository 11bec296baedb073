"""What the agent's loop reports of itself, and what the servers make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

import msgspec

from lbctl.config.bind import Bind
from lbctl.health import answers
from lbctl.health.answers import Answer, Condition
from lbctl.health.ports import HealthPorts
from lbctl.health.server import Route, Server
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeFacts

# A change that could not be written for this long means trouble (kube-proxy: twice syncPeriod).
STALE_SECONDS = 60.0
# A loop that did not turn for this long hangs; with nothing to do, it turns once a minute.
SILENT_SECONDS = 180.0


class _Reported(msgspec.Struct, frozen=True):
    """Times are of the monotonic clock, but for `updated`, which is since the epoch."""

    turned: float
    waiting: float | None = None  # since when something could not be written
    updated: float = 0.0
    ready: bool = False
    eligible: bool = True


class Health:
    """Written by the agent's loop, read by the server's thread: each report is one new record."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._server = Server()
        self._reported = _Reported(clock())
        self._ports = HealthPorts()
        self._conflicts: list[str] = []
        self._bind: Bind | None = None
        self._addresses: tuple[bytes, ...] = ()

    def start(self) -> None:
        """Start the thread, in the network namespace of the caller."""
        self._server.start()

    def stop(self) -> None:
        """End it, and close every socket."""
        self._server.stop()

    # What the loop reports.

    def turned(self) -> None:
        """The loop is alive."""
        self._report(turned=self._clock())

    def ready(self) -> None:
        """The data path is complete, if perhaps not up to date."""
        self._report(ready=True)

    def queued(self) -> None:
        """There is something to write."""
        if self._reported.waiting is None:
            self._report(waiting=self._clock())

    def written(self) -> None:
        """Everything is written."""
        self._report(waiting=None, updated=time.time())

    def set_eligible(self, eligible: bool) -> None:
        """Whether the node is to stay in the cluster."""
        self._report(eligible=eligible)

    def set_places(self, bind: Bind | None, addresses: tuple[bytes, ...]) -> None:
        """Where /healthz and /livez are asked for (None: nowhere), and on which addresses
        health-check node ports are."""
        if (bind, addresses) != (self._bind, self._addresses):
            self._bind, self._addresses = bind, addresses
            self._serve()

    def take(self, changed: Mapping[ObjectKey, ServiceObjects], node: NodeFacts) -> None:
        """Services as they now are."""
        if self._ports.take(changed, node):
            self._serve()

    def problems(self) -> list[str]:
        """Sentences about ports that cannot be had."""
        return [*self._server.problems(), *self._conflicts]

    def condition(self) -> Condition:
        """As of now. Called by the server's thread."""
        said, now = self._reported, self._clock()
        silent = now - said.turned > SILENT_SECONDS
        stale = said.waiting is not None and now - said.waiting > STALE_SECONDS
        return Condition(
            not silent and not stale, said.ready, said.eligible, said.updated, time.time()
        )

    def _report(self, **changes: object) -> None:
        self._reported = msgspec.structs.replace(self._reported, **changes)

    # What the servers answer.

    def _serve(self) -> None:
        wanted: dict[Bind, Route] = {}
        owners, self._conflicts = self._ports.owners()
        for port, key in owners.items():
            count = self._ports.ports[key][1]
            route = Route(f"healthCheckNodePort of {key}", _Service(self, key, count))
            wanted.update((Bind(address, port), route) for address in self._addresses)
        if self._bind is not None:
            wanted[self._bind] = Route("/healthz and /livez", self.general)
        self._server.serve(wanted)

    def general(self, path: str) -> Answer:
        """What a path of /healthz and /livez gets."""
        if path == "/healthz":
            return answers.healthz(self.condition())
        if path == "/livez":
            return answers.livez(self.condition())
        return answers.refusal(HTTPStatus.NOT_FOUND)


class _Service:
    """Answers for one service, whatever path is asked for."""

    def __init__(self, health: Health, key: ObjectKey, count: int) -> None:
        self._health = health
        self._key = key
        self._count = count

    def __call__(self, path: str) -> Answer:
        healthy = self._health.condition().healthy
        return answers.service_answer(self._key, self._count, healthy)
