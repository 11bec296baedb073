"""Weights as slots: each stands for two endpoints, one of them more or less often (A. J. Walker's
alias method, in the way of M. D. Vose). One draw then costs the same for any weights.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lbctl.datapath.shares import ONE, Shape
from lbctl.resolve.ports import MOST_WEIGHTED

Weights = npt.NDArray[np.float64]


class Warmth(NamedTuple):
    """What makes an endpoint's share grow: how long, and the tick that it is now."""

    slow_start: int  # ticks; 0: all have their whole share
    tick: int


def effective(weights: list[int], since: list[int], warmth: Warmth) -> Weights:
    """What each endpoint is worth now. A new one begins at one part of its time, not at nothing."""
    worth = np.array(weights, np.float64)
    if not warmth.slow_start:
        return worth
    began = np.array(since, np.int64)
    age = np.clip(warmth.tick - began, 0, None)
    grown = np.minimum(1.0, (age + 1) / warmth.slow_start)
    return np.where(began > 0, worth * grown, worth)


def is_warming(since: list[int], warmth: Warmth) -> bool:
    """Whether the share of one of them has yet to grow."""
    return any(began > 0 and warmth.tick - began + 1 < warmth.slow_start for began in since)


def shape(worth: Weights, near: int) -> Shape:
    """The slots of a set for these weights; the first `near` of them are drawn from alone, and so
    are the rest. Of nothing but zeros, or of too many, all are alike."""
    if not near or near >= len(worth):
        return _alias(worth)
    first, rest = _alias(worth[:near]), _alias(worth[near:])
    others = np.where(rest.shares > 0, rest.others + near, 0).astype(np.uint16)
    return Shape(
        np.concatenate([first.shares, rest.shares]), np.concatenate([first.others, others])
    )


def _alias(worth: Weights) -> Shape:
    """In whole numbers: then what is to get nothing gets nothing."""
    count = len(worth)
    shares, others = np.zeros(count, np.uint16), np.zeros(count, np.uint16)
    if count > MOST_WEIGHTED or worth.min(initial=np.inf) == worth.max(initial=-np.inf):
        return Shape(shares, others)
    parts = np.where(worth > 0, np.maximum(worth * ONE, 1), 0).astype(np.int64).tolist()
    full = sum(parts)  # of a slot, where an endpoint's part is that of `count` slots
    left = [part * count for part in parts]
    poor = [i for i in range(count) if left[i] < full]
    rich = [i for i in range(count) if left[i] >= full]
    while poor and rich:
        giver, taker = rich[-1], poor.pop()
        shares[taker] = _share(full - left[taker], full)
        others[taker] = giver if shares[taker] else 0
        left[giver] -= full - left[taker]
        if left[giver] < full:
            poor.append(rich.pop())
    return Shape(shares, others)


def _share(away: int, full: int) -> int:
    """As the programs have it: rounded, but all of a slot only if that is so."""
    parts = ONE if away == full else min(round(away * ONE / full), ONE - 1)
    return parts - 1 if parts > 1 else 0
