"""Events: what cannot be served as objects say, told to whoever looks at the objects.

The loop hands over what holds, whenever that changes; a thread of its own tells the API server, and
may wait, fail or end as it likes: nothing depends on it. What all nodes see of Services, one of
them tells: the first ready node by name. Each tells of itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from lbctl.agent.parts import Parts
from lbctl.agent.report import Report
from lbctl.agent.telling import Complaint, Regarding, Telling, Tellings
from lbctl.errors import LbError
from lbctl.host import settings
from lbctl.host.requirements import Requirement
from lbctl.instruments import Instruments
from lbctl.model.records import ObjectKey
from lbctl.threads import Beat, Watched
from lbctl.troubles import DOCTOR, FIELD_UNREADABLE, KINDS, Said

LOOK_SECONDS: Final = 5.0  # between looks at what changed
SPEAKER_SECONDS: Final = 300.0  # so long who speaks is believed
DOCTOR_SECONDS: Final = 6 * 3600.0
_DOCTOR_WAITS: Final = 60.0  # it takes a second of a processor, and the agent has more to do first
_FIRST_WAIT: Final = 5.0  # after a request that failed; doubled while they do
_LAST_WAIT: Final = 300.0
_FORBIDDEN_WAIT: Final = 1800.0
_STUCK_SECONDS: Final = 120.0
_LEAVES: Final = 2.0
_MOST_TEXTS: Final = 3
# It is there already, or the server will never take it: not to be sent again either way.
_SETTLED: Final = frozenset({400, 404, 409, 413, 422})
_FORBIDDEN: Final = 403
_GONE: Final = 404

Holding = Mapping[Complaint, str]


class EventApi(Protocol):
    """What lbctl/sources/eventapi.py does. All raise LbError, with a `status` if one came."""

    def is_speaker(self) -> bool: ...

    def create(
        self, *, name: str, regarding: dict[str, str], reason: str, note: str, now: float
    ) -> None: ...

    def repeat(self, *, name: str, regarding: dict[str, str], count: int, now: float) -> None: ...

    def close(self) -> None: ...


class Teller:
    """The thread, and what it is told. `start`, then `hold` from one other thread, then `stop`."""

    def __init__(
        self,
        api: EventApi,
        instruments: Instruments,
        doctor: Callable[[], Iterable[Requirement]],
        node: Regarding,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`doctor` is asked in the thread, now and then."""
        self._api = api
        self._counts = {
            result: instruments.events.labels(result) for result in ("written", "refused", "failed")
        }
        self._advice = _Advice(doctor, node, clock)
        self._clock = clock
        self._holding: Holding = {}
        self._news = threading.Event()
        self._log = structlog.get_logger()
        self.problem = ""
        self.watched = Watched("events", self._work, wake=wake)

    def start(self) -> None:
        self.watched.start()

    def stop(self) -> None:
        """A request that hangs is left to itself."""
        self.watched.stop()
        if self.watched.join(_LEAVES):
            self._api.close()

    def hold(self, holding: Holding) -> None:
        """What is complained of from now on."""
        self._holding = holding
        self._news.set()

    def _work(self, beat: Beat) -> None:
        beat.interrupt = self._news.set
        round_ = _Round(self._api, self._clock, self._advice)
        while not beat.stopping.is_set():
            self._news.clear()
            wait = self._turn(round_)
            beat.within(float("inf") if wait is None else wait + _STUCK_SECONDS)
            self._news.wait(wait)
            beat.within(_STUCK_SECONDS)

    def _turn(self, round_: _Round) -> float | None:
        """Tell one thing. Returns the seconds until there may be another."""
        try:
            telling, wait = round_.next(self._holding)
            if telling is not None:
                round_.send(telling)
                self._counts["written"].inc()
        except LbError as error:
            self._failed(round_, error)
            return round_.patience()
        if telling is not None or self.problem:
            self.problem = ""
            round_.worked()
        return wait

    def _failed(self, round_: _Round, error: LbError) -> None:
        forbidden = getattr(error, "status", 0) == _FORBIDDEN
        self._counts["refused" if getattr(error, "status", 0) else "failed"].inc()
        round_.forbidden = forbidden
        problem = f"Events cannot be written: {error.message}"
        if forbidden:
            problem = (
                "Events may not be written, nor nodes listed for them: deploy/components/events "
                "has the rights, or turn `events` off"
            )
        if problem != self.problem:
            self._log.warning("events cannot be written", error=error.message)
        self.problem = problem


class _Advice:
    """What doctor finds, as one complaint of this node. It tries a lot: a thread that it should
    end has a successor, which does not ask it again at once."""

    def __init__(
        self,
        doctor: Callable[[], Iterable[Requirement]],
        node: Regarding,
        clock: Callable[[], float],
    ) -> None:
        self._doctor = doctor
        self._node = node
        self.due = clock() + _DOCTOR_WAITS
        self.holding: Holding = {}

    def look(self, now: float) -> None:
        """Ask."""
        self.due = now + DOCTOR_SECONDS
        found = [item for item in self._doctor() if matters(item)]
        texts = [f"{item.name}: {item.detail}. {item.remedy}" for item in found]
        self.holding = {Complaint(self._node, DOCTOR): listed(texts)} if texts else {}


class _Round:
    """What one thread knows: it is gone with it."""

    def __init__(self, api: EventApi, clock: Callable[[], float], advice: _Advice) -> None:
        self._api = api
        self._clock = clock
        self._advice = advice
        self._tellings = Tellings()
        self._speaks = False
        self._asked: float | None = None
        self._wait = _FIRST_WAIT
        self.forbidden = False

    def next(self, holding: Holding) -> tuple[Telling | None, float | None]:
        """What to send now, and how long to wait if nothing happens."""
        now = self._clock()
        if now >= self._advice.due:
            self._advice.look(now)
        of_services = {key: text for key, text in holding.items() if key.regarding.namespace}
        if of_services and (self._asked is None or now >= self._asked + SPEAKER_SECONDS):
            self._speaks = self._api.is_speaker()
            self._asked = now
        mine = {key: text for key, text in holding.items() if not key.regarding.namespace}
        told = of_services if self._speaks else {}
        self._tellings.take({**told, **mine, **self._advice.holding}, now)
        telling = self._tellings.next(now)
        if telling is not None:
            return telling, 0.0
        times = [self._advice.due, self._tellings.due(now)]
        if of_services and self._asked is not None:
            times.append(self._asked + SPEAKER_SECONDS)
        return None, max(0.0, min(at for at in times if at is not None) - now)

    def send(self, telling: Telling) -> None:
        """Raises LbError if it is to be tried again."""
        try:
            self._send(telling)
        except LbError as error:
            if getattr(error, "status", 0) not in _SETTLED:
                raise
        self._tellings.sent(telling, self._clock())

    def _send(self, telling: Telling) -> None:
        about = telling.complaint.regarding
        fields = {"kind": about.kind, "name": about.name}
        fields |= {"namespace": about.namespace} if about.namespace else {}
        fields |= {"uid": about.uid} if about.uid else {}
        now = time.time()
        if telling.times:
            try:
                self._api.repeat(name=telling.name, regarding=fields, count=telling.times, now=now)
                return
            except LbError as error:
                if getattr(error, "status", 0) != _GONE:
                    raise
        self._api.create(
            name=telling.name,
            regarding=fields,
            reason=telling.complaint.reason,
            note=telling.note,
            now=now,
        )

    def worked(self) -> None:
        self._wait = _FIRST_WAIT
        self.forbidden = False

    def patience(self) -> float:
        """How long to wait after a failure."""
        if self.forbidden:
            return _FORBIDDEN_WAIT
        wait, self._wait = self._wait, min(_LAST_WAIT, 2 * self._wait)
        return wait


class Complaints:
    """In the loop: notices that something is complained of, or no longer, and hands all of it to
    the teller."""

    def __init__(self, parts: Parts, report: Report, teller: Teller) -> None:
        self._parts = parts
        self._report = report
        self._teller = teller
        self._seen: object = None
        self._earliest = 0.0

    def due(self) -> float | None:
        """When `step` has something to do; also for the thread's sake, which wakes the loop when it
        ends."""
        self._teller.watched.check()
        thread = self._teller.watched.due()
        if self._state() != self._seen:
            return self._earliest if thread is None else min(self._earliest, thread)
        return thread

    def step(self, now: float) -> None:
        """Look at it all."""
        state = self._state()
        if state == self._seen or now < self._earliest:
            return
        self._seen = state
        self._earliest = now + LOOK_SECONDS
        self._teller.hold({**self._of_services(), **self._of_node()})

    def _state(self) -> object:
        """Differs whenever there are others."""
        report = self._report
        return self._parts.reconciler.told, report.said, report.latest.source.problems

    def _of_services(self) -> dict[Complaint, str]:
        reconciler = self._parts.reconciler
        found: dict[Complaint, str] = {}
        for key, said in reconciler.complaints().items():
            for reason, text in said:
                found[Complaint(self._service(key), reason)] = text
        for key, text in self._parts.source.service_problems().items():
            found[Complaint(self._service(key), FIELD_UNREADABLE)] = text
        return found

    def _service(self, key: ObjectKey) -> Regarding:
        objects = self._parts.reconciler.known.objects.get(key)
        service = objects.service if objects else None
        return Regarding("Service", key.namespace, key.name, service.uid if service else "")

    def _of_node(self) -> dict[Complaint, str]:
        return {
            Complaint(of_node(self._parts.facts.name), reason): text
            for reason, text in of_conditions(self._report.said).items()
        }


def matters(item: Requirement) -> bool:
    """Whether a node's owner should hear of it: of what lbctl needs, and of what others left or set
    on the node. What the deployment chose not to have is no news."""
    return item.ok is False and (item.required or item.name in settings.CHECKS)


def of_node(name: str) -> Regarding:
    """A node; the kubelet's Events call its name its uid, and so does who looks for them."""
    return Regarding("Node", "", name, name)


def of_conditions(said: Iterable[Said]) -> dict[str, str]:
    """By reason of an Event on the Node, all that is said of it."""
    texts: dict[str, list[str]] = {}
    for kind, text in said:
        if reason := KINDS[kind].event:
            texts.setdefault(reason, []).append(text)
    return {reason: listed(found) for reason, found in texts.items()}


def listed(texts: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(texts) - _MOST_TEXTS
    shown = "; ".join(texts[:_MOST_TEXTS])
    return f"{shown}; and {more} more" if more > 0 else shown
