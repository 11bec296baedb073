"""What the servers say: status, headers and JSON bodies as kube-proxy's. Pure."""

from __future__ import annotations

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

    healthy: bool  # what it was told is written
    ready: bool  # the data path is complete, of this agent or of the one before
    eligible: bool  # the node is to stay
    updated: float  # when something was last written, 0 for never
    now: float


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
    body = _times(condition) | {"nodeEligible": condition.eligible}
    return _json(condition.healthy and condition.ready and condition.eligible, body)


def livez(condition: Condition) -> Answer:
    """Whether a restart of the agent would help: leaving nodes and agents that wait for the API
    server are fine in this respect."""
    return _json(condition.healthy, _times(condition))


def refusal(status: HTTPStatus, *headers: tuple[str, str]) -> Answer:
    """Of a request that is no question to us."""
    return Answer(status, f"{status.phrase}\n".encode(), (*_TEXT_HEADERS, *headers))


def _times(condition: Condition) -> dict[str, object]:
    """While all is well, lastUpdated is now, for whoever compares the two: a cluster in which
    nothing changes is not stale."""
    updated = condition.now if condition.healthy and condition.ready else condition.updated
    return {"lastUpdated": _rfc3339(updated), "currentTime": _rfc3339(condition.now)}


def _rfc3339(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _json(good: bool, body: dict[str, object], *headers: tuple[str, str]) -> Answer:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, msgspec.json.encode(body), (*JSON_HEADERS, *headers))
