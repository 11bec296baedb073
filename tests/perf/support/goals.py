"""What the project wants its figures to be, and where they are among the saved results."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tests.perf.support.saved_results import Data

Value = Callable[[Data], float | None]


class Goal(msgspec.Struct, frozen=True):
    """`value` is to be at most `most`, in `unit`."""

    text: str
    unit: str
    most: float
    value: Value


def _packet(*names: str) -> Value:
    return lambda data: data.packet(*names)


def _connect(peer: str) -> Value:
    return lambda data: data.worst_ratio(peer, "connect_latency")


def _added(peer: str) -> Value:
    return lambda data: data.worst(peer, "roundtrip_added")


def _agent(text: str, unit: str, measure: str, *goals: tuple[int, float]) -> tuple[Goal, ...]:
    """A measure of tests.perf.scale; `goals` by the number of services."""

    def value(services: int) -> Value:
        return lambda data: data.median(services, measure)

    return tuple(Goal(f"{text}, {size:,} × 10", unit, most, value(size)) for size, most in goals)


_SMALL, _MIDDLE, _LARGE = 1, 10_000, 50_000

GOALS = (
    Goal(
        "a packet of no service",
        "ns",
        10,
        _packet("not service, IPv4", "not service, IPv6", "not service, to the pod"),
    ),
    Goal(
        "an established packet, one flow, IPv4",
        "ns",
        25,
        _packet("established, IPv4", "established reply, IPv4"),
    ),
    Goal(
        "an established packet, 64k random flows, IPv4",
        "ns",
        170,
        _packet("64k flows, IPv4", "64k flows reply, IPv4"),
    ),
    Goal("a new flow, everything included, IPv4", "ns", 350, _packet("new flow, IPv4")),
    Goal("connect() by TC, at any size", "× the floor", 1.08, _connect("lbctl-tc")),
    Goal("connect() by the fast path", "× the floor", 0.88, _connect("lbctl-fast")),
    Goal("connect() by socket hook", "× the floor", 1.03, _connect("lbctl-socket")),
    Goal("added to a round trip by TC", "µs", 0.35, _added("lbctl-tc")),
    Goal("added to a round trip by the fast path", "µs", 0, _added("lbctl-fast")),
    *_agent("start", "s", "start until all programmed", (_MIDDLE, 1), (_LARGE, 15)),
    *_agent("a version's first start", "s", "first start of a version", (_MIDDLE, 3)),
    *_agent("restart without a change", "s", "restart, nothing changed", (_MIDDLE, 2), (_LARGE, 2)),
    *_agent("one changed endpoint, p99", "ms", "one change: p99", (_MIDDLE, 5), (_LARGE, 5)),
    *_agent("1,000 changes/s, p99", "ms", "1000 changes/s: p99", (_MIDDLE, 20), (_LARGE, 20)),
    *_agent("resident memory", "MB", "resident", (_MIDDLE, 120), (_LARGE, 400)),
    *_agent(
        "kernel memory with 1,000 flows",
        "MB",
        "kernel maps",
        *((_SMALL, 10), (_MIDDLE, 40), (_LARGE, 150)),
    ),
)
