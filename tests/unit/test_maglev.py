"""Tables by hash: every node makes the same one, and little changes when an endpoint goes."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.plan import maglev

SIZE = 1024
IDENTITIES = st.lists(st.binary(min_size=18, max_size=18), min_size=1, max_size=30, unique=True)


def identities(count: int) -> list[bytes]:
    return [b"endpoint %09d" % number for number in range(count)]


def named(members: list[bytes], weights: list[int], size: int = SIZE) -> list[bytes]:
    """By place, who has it."""
    return [members[index] for index in maglev.table(members, weights, size)]


@given(IDENTITIES, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_nodes_agree_whatever_the_order(members: list[bytes], chance: random.Random) -> None:
    weights = {member: chance.choice([1, 7, 100]) for member in members}
    elsewhere = chance.sample(members, len(members))
    here = named(members, [weights[m] for m in members])
    assert here == named(elsewhere, [weights[m] for m in elsewhere])


@given(IDENTITIES, st.data())
@settings(max_examples=50)
def test_nobody_has_more_than_a_part_and_a_bit(members: list[bytes], data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.integers(0, 65535), min_size=len(members), max_size=len(members)).filter(any)
    )
    places = np.bincount(maglev.table(members, weights, SIZE), minlength=len(members))
    for has, weight in zip(places, weights, strict=True):
        assert has <= SIZE * weight / sum(weights) * (1 + 1 / 16) + 1
        assert weight or not has


@pytest.mark.parametrize("seed", range(5))
def test_one_of_a_hundred_leaves(seed: int) -> None:
    """Of the places that others have, at most one in a hundred changes hands."""
    members = identities(100)
    size = maglev.size_for(100)
    gone = random.Random(seed).choice(members)
    rest = [member for member in members if member != gone]
    before, after = named(members, [1] * 100, size), named(rest, [1] * 99, size)
    others = [place for place, owner in enumerate(before) if owner != gone]
    assert sum(before[place] != after[place] for place in others) <= len(others) / 100
    # What comes is what goes, the other way round.
    assert size == maglev.size_for(99)


def test_a_weight_changes_little_for_others() -> None:
    members, size = identities(100), maglev.size_for(100)
    before = named(members, [100] * 100, size)
    after = named(members, [50, *[100] * 99], size)
    others = [place for place, owner in enumerate(before) if owner != members[0]]
    assert sum(before[place] != after[place] for place in others) <= len(others) / 100
    assert 0.35 < after.count(members[0]) / before.count(members[0]) < 0.65


def test_everybody_has_about_a_part() -> None:
    members, size = identities(100), maglev.size_for(100)
    places = np.bincount(maglev.table(members, [1] * 100, size))
    assert places.min() > 0.6 * size / 100


def test_sizes_go_by_steps() -> None:
    sizes = [maglev.size_for(count) for count in range(1, 4000)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 5
    assert all(s >= n * maglev.PLACES_EACH for n, s in enumerate(sizes, 1) if s < max(sizes))
