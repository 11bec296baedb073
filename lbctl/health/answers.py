"""What the servers say: status, headers and JSON bodies as kube-proxy's. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec

from lbctl.model.records import ObjectKey


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer; length, date and connection headers are the server's business."""

    status: HTTPStatus
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


JSON_HEADERS = (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"))
_TEXT_HEADERS = (("Content-Type", "text/plain; charset=utf-8"), JSON_HEADERS[1])


class Condition(msgspec.Struct, frozen=True):
    """How the agent is doing at one moment. Times are seconds since the epoch."""

    alive: bool  # its loop turns
    fit: bool  # what it was told is written, and outsiders' packets meet programs
    ready: bool  # the data path is complete, of this agent or of the one before
    settled: bool  # nothing is wrong that a rollout should wait for
    eligible: bool  # the node is to stay
    updated: float  # when something was last written, 0 for never
    now: float
    problems: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether packets are served as the objects say."""
        return self.alive and self.fit

    @property
    def takes_traffic(self) -> bool:
        """What /healthz says."""
        return self.healthy and self.ready and self.eligible

    @property
    def does_all(self) -> bool:
        """What /readyz says."""
        return self.healthy and self.ready and self.settled


def service_answer(key: ObjectKey, count: int, healthy: bool) -> Answer:
    """Of a health-check node port: whether to send this node traffic for the service.

    The weight header lets a load balancer send more to a node with more endpoints (KEP-3668).
    """
    body = {
        "service": {"namespace": key.namespace, "name": key.name},
        "localEndpoints": count,
        "serviceProxyHealthy": healthy,
    }
    weight = ("X-Load-Balancing-Endpoint-Weight", str(count))
    return _json(count > 0 and healthy, body, weight)


def healthz(condition: Condition) -> Answer:
    """Whether to send this node traffic of any service: not if it is about to be removed
    (KEP-3836)."""
    body = _times(condition) | {"nodeEligible": condition.eligible} | _problems(condition)
    return _json(condition.takes_traffic, body)


def livez(condition: Condition) -> Answer:
    """Whether a restart of the agent would help: only if its loop hangs. Whatever an object, the
    API server or the kernel does to one agent it may do to all of them, and again after a restart.
    """
    return _json(condition.alive, _times(condition))


def readyz(condition: Condition) -> Answer:
    """Whether this agent does all that it is for: what a rollout waits for."""
    return _json(condition.does_all, _times(condition) | _problems(condition))


PROXY_MODE = Answer(HTTPStatus.OK, b"lbctl", _TEXT_HEADERS)


def path_of(paths: Mapping[str, Callable[[], Answer]], path: str) -> Answer:
    """What is answered to a path, of those there are."""
    answer = paths.get(path)
    return answer() if answer else refusal(HTTPStatus.NOT_FOUND)


def refusal(status: HTTPStatus, *headers: tuple[str, str]) -> Answer:
    """Of a request that is no question to us."""
    return Answer(status, f"{status.phrase}\n".encode(), (*_TEXT_HEADERS, *headers))


def _times(condition: Condition) -> dict[str, object]:
    """While all is well, lastUpdated is now, for whoever compares the two: a cluster in which
    nothing changes is not stale."""
    updated = condition.now if condition.healthy and condition.ready else condition.updated
    return {"lastUpdated": _rfc3339(updated), "currentTime": _rfc3339(condition.now)}


def _problems(condition: Condition) -> dict[str, object]:
    """For people. kube-proxy's answer has none, and no field while there are none."""
    return {"problems": condition.problems} if condition.problems else {}


def _rfc3339(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _json(good: bool, body: dict[str, object], *headers: tuple[str, str]) -> Answer:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, msgspec.json.encode(body), (*JSON_HEADERS, *headers))
