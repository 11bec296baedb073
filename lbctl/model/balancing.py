"""What annotations say of a service's endpoints: how one is chosen, and the way there. In our words
and in others'.

A wrong value costs itself: it leaves a remark, and the default is used. Where an object has a word
of ours, those of others are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeVar

import msgspec

from lbctl.durations import parse_duration
from lbctl.model.fields import InvalidField, Remarks
from lbctl.model.records import (
    ALGORITHMS,
    DEFAULT_WEIGHT,
    FORWARDINGS,
    PLAIN,
    Algorithm,
    Balancing,
    Forwarding,
)

T = TypeVar("T")

ALGORITHM: Final = "lbctl/algorithm"
SLOW_START: Final = "lbctl/slow-start"
NEAR: Final = "lbctl/near"
SPILL_OVER: Final = "lbctl/spill-over"
FLOWS_LEAVE: Final = "lbctl/flows-leave"
FORWARDING: Final = "lbctl/forwarding"
WEIGHT: Final = "lbctl/weight"
CILIUM_ALGORITHM: Final = "service.cilium.io/lb-algorithm"
CILIUM_WEIGHT: Final = "service.cilium.io/weight"
KUBE_ROUTER_SCHEDULER: Final = "kube-router.io/service.scheduler"
CILIUM_FORWARDING: Final = "service.cilium.io/forwarding-mode"
KUBE_ROUTER_DSR: Final = "kube-router.io/service.dsr"

# IPVS's schedulers that choose as one of ours does, or nearly.
SCHEDULERS: Final[Mapping[str, Algorithm]] = {
    "rr": "round-robin",
    "wrr": "round-robin",
    "lc": "least-connections",
    "wlc": "least-connections",
    "sed": "least-connections",
    "nq": "least-connections",
    "sh": "source-hash",
    "mh": "maglev",
}
_CILIUM_ALGORITHMS: Final[Mapping[str, Algorithm]] = {"random": "random", "maglev": "maglev"}
_CILIUM_FORWARDINGS: Final[Mapping[str, Forwarding]] = {"snat": "snat", "dsr": "dsr"}
_KUBE_ROUTER_DSR: Final[Mapping[str, Forwarding]] = {"tunnel": "dsr"}
_MOST_WEIGHT = 65535
_LONGEST_START = 3600.0  # seconds
_MOST_SPILL = 1000.0
_KEPT, _RESET = "kept", "reset"


class Annotations(msgspec.Struct, gc=False):
    """Those of an object that we read. All others are skipped: they may be long."""

    algorithm: str | None = msgspec.field(default=None, name=ALGORITHM)
    slow_start: str | None = msgspec.field(default=None, name=SLOW_START)
    near: str | None = msgspec.field(default=None, name=NEAR)
    spill_over: str | None = msgspec.field(default=None, name=SPILL_OVER)
    flows_leave: str | None = msgspec.field(default=None, name=FLOWS_LEAVE)
    forwarding: str | None = msgspec.field(default=None, name=FORWARDING)
    weight: str | None = msgspec.field(default=None, name=WEIGHT)
    cilium_algorithm: str | None = msgspec.field(default=None, name=CILIUM_ALGORITHM)
    cilium_weight: str | None = msgspec.field(default=None, name=CILIUM_WEIGHT)
    scheduler: str | None = msgspec.field(default=None, name=KUBE_ROUTER_SCHEDULER)
    cilium_forwarding: str | None = msgspec.field(default=None, name=CILIUM_FORWARDING)
    kube_router_dsr: str | None = msgspec.field(default=None, name=KUBE_ROUTER_DSR)


def balancing(found: Annotations | None, remarks: Remarks) -> Balancing:
    """What the annotations of a Service say."""
    if found is None:
        return PLAIN
    said = Balancing(
        algorithm=_algorithm(found, remarks),
        slow_start=_value(SLOW_START, found.slow_start, _slow_start, 0.0, remarks),
        near=_value(NEAR, found.near, _near, "", remarks),
        spill_over=_value(SPILL_OVER, found.spill_over, _spill_over, PLAIN.spill_over, remarks),
        flows_leave=_value(FLOWS_LEAVE, found.flows_leave, _flows_leave, None, remarks),
        forwarding=_forwarding(found, remarks),
    )
    return PLAIN if said == PLAIN else said


def weight(found: Annotations | None, remarks: Remarks) -> int:
    """The weight of all endpoints of a slice."""
    if found is None:
        return DEFAULT_WEIGHT
    if found.weight is not None:
        return _value(WEIGHT, found.weight, _weight, DEFAULT_WEIGHT, remarks)
    return _value(CILIUM_WEIGHT, found.cilium_weight, _weight, DEFAULT_WEIGHT, remarks)


def _algorithm(found: Annotations, remarks: Remarks) -> Algorithm | None:
    return _first(
        (
            (ALGORITHM, found.algorithm, {word: word for word in ALGORITHMS}),
            (CILIUM_ALGORITHM, found.cilium_algorithm, _CILIUM_ALGORITHMS),
            (KUBE_ROUTER_SCHEDULER, found.scheduler, SCHEDULERS),
        ),
        remarks,
    )


def _forwarding(found: Annotations, remarks: Remarks) -> Forwarding | None:
    return _first(
        (
            (FORWARDING, found.forwarding, {word: word for word in FORWARDINGS}),
            (CILIUM_FORWARDING, found.cilium_forwarding, _CILIUM_FORWARDINGS),
            (KUBE_ROUTER_DSR, found.kube_router_dsr, _KUBE_ROUTER_DSR),
        ),
        remarks,
    )


def _first(names: Iterable[tuple[str, str | None, Mapping[str, T]]], remarks: Remarks) -> T | None:
    """What the first says that is there, right or wrong."""
    for name, text, known in names:
        if text is not None:
            return _value(name, text, partial(_word, known=known), None, remarks)
    return None


def _value(
    name: str, text: str | None, parse: Callable[[str], T], default: T, remarks: Remarks
) -> T:
    if text is None:
        return default
    try:
        return parse(text.strip())
    except ValueError as error:
        message = f"{error}; the default is used"
        remarks.add(InvalidField(f"metadata.annotations[{name}]", message))
        return default


def _word(text: str, known: Mapping[str, T]) -> T:
    if text not in known:
        raise ValueError(f"{text!r} is none of {', '.join(known)}")
    return known[text]


def _slow_start(text: str) -> float:
    seconds = parse_duration(text)
    if seconds > _LONGEST_START:
        raise ValueError(f"{text!r} is longer than an hour")
    return seconds


def _near(text: str) -> str:
    return _word(text, {"node": "node", "zone": "zone"})


def _spill_over(text: str) -> float:
    times = _number(text)
    if not 1 <= times <= _MOST_SPILL:
        raise ValueError(f"{text!r} is not from 1 to {_MOST_SPILL:.0f}, like 2 or 1.5")
    return times


def _number(text: str) -> float:
    """A plain decimal: Python's own reading takes more than people mean (inf, 1_0)."""
    whole, _, part = text.partition(".")
    if not (whole + part).isascii() or not whole.isdecimal() or not (part or "0").isdecimal():
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def _flows_leave(text: str) -> float | None:
    """None: they are kept; 0: they are reset at once; else the seconds they have."""
    if text in (_KEPT, _RESET):
        return None if text == _KEPT else 0.0
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not {_KEPT}, {_RESET} or a duration, like 90s") from error


def _weight(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 9) or int(text) > _MOST_WEIGHT:
        raise ValueError(f"{text!r} is not a whole number from 0 to {_MOST_WEIGHT}")
    return int(text)
