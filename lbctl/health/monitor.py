"""What the agent's loop reports of itself, and what the servers make of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from prometheus_client import Counter

from lbctl.config.bind import Bind
from lbctl.health import answers
from lbctl.health.answers import Answer, Condition
from lbctl.health.ports import HealthPorts
from lbctl.health.server import Route, Server
from lbctl.instruments import Instruments
from lbctl.model.records import ObjectKey, ServiceObjects
from lbctl.resolve.node import NodeFacts
from lbctl.threads import Watched

# A change that could not be written for this long means trouble (kube-proxy: twice syncPeriod).
STALE_SECONDS = 60.0
# A loop that did not turn for this long hangs; with nothing to do, it turns once a minute.
SILENT_SECONDS = 180.0


Paths = dict[str, Callable[[], Answer]]


class Verdict(msgspec.Struct, frozen=True):
    """What the agent thinks of itself, apart from what is reported one by one."""

    settled: bool = False  # nothing is wrong that a rollout should wait for
    fit: bool = True  # nothing is wrong that load balancers should know of
    problems: tuple[str, ...] = ()


class _Reported(msgspec.Struct, frozen=True):
    """Times are of the monotonic clock, but for `updated`, which is since the epoch."""

    turned: float
    waiting: float | None = None  # since when something could not be written
    updated: float = 0.0
    ready: bool = False
    eligible: bool = True
    verdict: Verdict = Verdict()


class Health:
    """Written by the agent's loop, read by the server's thread: each report is one new record."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wake: Callable[[], None] | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        """`wake` is called when the thread ends, by it."""
        counts = instruments or Instruments()
        self._clock = clock
        self._server = Server(wake)
        self._reported = _Reported(clock())
        self._ports = HealthPorts()
        self._conflicts: list[str] = []
        self._bind: Bind | None = None
        self._metrics: Bind | None = None
        self._addresses: tuple[bytes, ...] = ()
        self._general: Paths = {
            "/healthz": lambda: _counted(counts.healthz, answers.healthz(self.condition())),
            "/livez": lambda: _counted(counts.livez, answers.livez(self.condition())),
            "/readyz": lambda: answers.readyz(self.condition()),
        }
        # Of metricsBindAddress.
        self._pages: Paths = {"/proxyMode": lambda: answers.PROXY_MODE}

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

    def judge(self, verdict: Verdict) -> None:
        """What is wrong for longer than it may be."""
        if verdict != self._reported.verdict:
            self._report(verdict=verdict)

    def set_places(
        self, bind: Bind | None, addresses: tuple[bytes, ...], metrics: Bind | None = None
    ) -> None:
        """Where /healthz, /livez and /readyz are asked for (None: nowhere), on which addresses
        health-check node ports are, and where the pages for scrapers are."""
        if (bind, addresses, metrics) != (self._bind, self._addresses, self._metrics):
            self._bind, self._addresses, self._metrics = bind, addresses, metrics
            self._serve()

    def add_pages(self, pages: Paths) -> None:
        """More paths where /proxyMode is. The server's thread makes what they answer."""
        self._pages.update(pages)
        self._serve()

    def take(self, changed: Mapping[ObjectKey, ServiceObjects], node: NodeFacts) -> None:
        """Services as they now are."""
        if self._ports.take(changed, node):
            self._serve()

    def problems(self) -> list[str]:
        """Sentences about ports that cannot be had."""
        return [*self._server.problems(), *self._conflicts]

    @property
    def thread(self) -> Watched:
        """The server's, for who looks after threads."""
        return self._server.watched

    def unwritten(self) -> bool:
        """Whether something could not be written for longer than STALE_SECONDS."""
        said = self._reported
        return said.waiting is not None and self._clock() - said.waiting > STALE_SECONDS

    def condition(self) -> Condition:
        """As of now. Called by the server's thread."""
        said = self._reported
        return Condition(
            alive=self._clock() - said.turned <= SILENT_SECONDS,
            fit=said.verdict.fit and not self.unwritten(),
            ready=said.ready,
            settled=said.verdict.settled,
            eligible=said.eligible,
            updated=said.updated,
            now=time.time(),
            problems=said.verdict.problems,
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
        # Whoever asks for one place of two kinds gets the answers of both.
        for bind, name, paths in (
            (self._metrics, "/metrics, /configz and /proxyMode", self._pages),
            (self._bind, "/healthz, /livez and /readyz", self._general),
        ):
            if bind is not None:
                both = self._pages | self._general if self._metrics == self._bind else paths
                wanted[bind] = Route(name, partial(answers.path_of, both))
        self._server.serve(wanted)

    def general(self, path: str) -> Answer:
        """What a path of /healthz, /livez and /readyz gets."""
        return answers.path_of(self._general, path)


def _counted(counter: Counter, answer: Answer) -> Answer:
    counter.labels(str(answer.status.value)).inc()
    return answer


class _Service:
    """Answers for one service, whatever path is asked for."""

    def __init__(self, health: Health, key: ObjectKey, count: int) -> None:
        self._health = health
        self._key = key
        self._count = count

    def __call__(self, path: str) -> Answer:
        healthy = self._health.condition().healthy
        return answers.service_answer(self._key, self._count, healthy)
