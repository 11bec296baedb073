"""Weights as slots: what was asked for is what is likely; what was to get nothing gets nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lbctl.datapath.shares import Shape, likelihood
from lbctl.plan import shares
from lbctl.plan.shares import Warmth
from lbctl.resolve.ports import MOST_WEIGHTED

WEIGHTS = st.lists(st.sampled_from([0, 1, 5, 100]) | st.integers(0, 65535), min_size=1, max_size=60)


@given(WEIGHTS.filter(any))
def test_likelihoods_are_those_of_the_weights(weights: list[int]) -> None:
    found = likelihood(shares.shape(np.array(weights, float), 0))
    wanted = np.array(weights) / sum(weights)
    assert np.abs(found - wanted).max() < 3 / 65536
    assert all((likely > 0) == (weight > 0) for likely, weight in zip(found, weights, strict=True))


@given(WEIGHTS.filter(any), WEIGHTS.filter(any))
def test_near_and_far_are_apart(near: list[int], far: list[int]) -> None:
    """Each part is one in itself: what is drawn from it stays in it."""
    shape = shares.shape(np.array(near + far, float), len(near))
    first = Shape(shape.shares[: len(near)], shape.others[: len(near)])
    aliased = shape.shares[len(near) :] > 0
    rest_others = np.where(aliased, shape.others[len(near) :] - len(near), 0)
    rest = Shape(shape.shares[len(near) :], rest_others.astype(np.uint16))
    for part, weights in ((first, near), (rest, far)):
        wanted = np.array(weights) / sum(weights)
        assert np.abs(likelihood(part) - wanted).max() < 3 / 65536


@given(st.integers(1, 50), st.integers(0, 65535))
def test_equal_weights_are_plain(count: int, weight: int) -> None:
    assert shares.shape(np.full(count, float(weight)), 0).same_as(Shape.plain(count))


def test_a_new_endpoints_share_grows_evenly() -> None:
    """One of two is new, with 28 ticks to go: 1/28 of a share at first, then 2/28, and so on."""
    for tick in range(100, 140):
        worth = shares.effective([100, 100], [0, 100], Warmth(28, tick))
        grown = min(1.0, (tick - 100 + 1) / 28)
        assert np.allclose(worth, [100, 100 * grown])
        likely = likelihood(shares.shape(worth, 0))
        assert abs(likely[1] - grown / (1 + grown)) < 3 / 65536
        assert shares.is_warming([0, 100], Warmth(28, tick)) == (grown < 1)


def test_all_equally_new_share_equally() -> None:
    worth = shares.effective([100, 100, 100], [50, 50, 50], Warmth(28, 52))
    assert shares.shape(worth, 0).same_as(Shape.plain(3))


def test_no_slow_start_no_difference() -> None:
    assert shares.effective([3, 4], [0, 7], Warmth(0, 8)).tolist() == [3, 4]
    assert not shares.is_warming([0, 7], Warmth(0, 8))


def test_more_than_a_slot_can_name_are_alike() -> None:
    worth = np.ones(MOST_WEIGHTED + 1)
    worth[0] = 5
    assert shares.shape(worth, 0).same_as(Shape.plain(len(worth)))
