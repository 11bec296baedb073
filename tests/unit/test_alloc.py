"""Ids and regions: nothing is held twice, reused early or lost."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbctl.plan.alloc import Exhausted, IdPool, RegionPool

NOTHING = np.zeros(0, bool)


def ids(*numbers: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.array(numbers, np.int64)


def test_ids_are_dense_and_start_at_one() -> None:
    pool = IdPool("services", 5, "--services")
    assert [pool.take() for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(Exhausted, match="services") as caught:
        pool.take()
    assert "--services" in caught.value.hint


def test_the_lowest_free_id_comes_first() -> None:
    pool = IdPool("services", 100, "--services")
    pool.take_many(10)
    pool.release(7, 0.0)
    pool.release(3, 0.0)
    assert pool.recover(2.0, NOTHING) == [3, 7]
    assert pool.take_many(3) == [3, 7, 11]


def test_an_id_rests_for_the_grace_period_and_until_no_flow_has_it() -> None:
    pool = IdPool("backends", 100, "--endpoints")
    number = pool.take()
    pool.release(number, 10.0)
    referenced = np.zeros(5, bool)
    referenced[number] = True
    assert pool.recover(11.9, NOTHING) == []  # the sweep began within the grace period
    assert pool.recover(12.0, referenced) == []
    assert pool.take() == 2
    assert pool.recover(20.0, NOTHING) == [1]
    assert pool.take() == 1


def test_a_reclaimed_id_is_no_longer_freed() -> None:
    pool = IdPool("services", 100, "--services")
    number = pool.take()
    pool.release(number, 0.0)
    pool.reclaim(number)
    assert pool.recover(100.0, NOTHING) == []
    assert (pool.in_use, pool.resting) == (1, 0)


def test_taking_many_is_all_or_nothing() -> None:
    pool = IdPool("backends", 5, "--endpoints")
    with pytest.raises(Exhausted):
        pool.take_many(5)
    assert pool.take_many(4) == [1, 2, 3, 4]


def test_ids_of_an_earlier_agent() -> None:
    pool = IdPool("backends", 100, "--endpoints")
    pool.adopt(ids(2, 5), ids(3), now=50.0)
    assert pool.take_many(3) == [1, 4, 6]
    assert pool.recover(51.0, NOTHING) == []
    assert pool.recover(52.0, NOTHING) == [3]
    assert pool.take() == 3


def test_random_use_of_ids() -> None:
    chance = random.Random(1)
    pool = IdPool("backends", 400, "--endpoints")
    held: set[int] = set()
    resting: dict[int, float] = {}
    flows = np.zeros(400, bool)
    now = 0.0
    for _ in range(100_000):
        now += chance.random() * 0.01
        match chance.randrange(100):
            case x if x < 45:
                try:
                    number = pool.take()
                except Exhausted:
                    assert len(held) + len(resting) == 399
                    continue
                assert number not in held
                assert number not in resting
                held.add(number)
            case x if x < 97 and held:
                number = chance.choice(tuple(held)) if len(held) < 20 else next(iter(held))
                held.remove(number)
                resting[number] = now
                flows[number] = chance.random() < 0.3
                pool.release(number, now)
            case _:
                began = now - chance.random()
                for number in pool.recover(began, flows):
                    assert resting.pop(number) + 2.0 <= began
                    assert not flows[number]
                if chance.random() < 0.1:
                    flows[:] = False
        assert (pool.in_use, pool.resting) == (len(held), len(resting))


def test_regions_are_disjoint_and_rest() -> None:
    pool = RegionPool("slots", 30, "--endpoints")
    first = pool.take(10, 0.0)
    second = pool.take(10, 0.0)
    assert {first, second} == {0, 10}
    pool.release(first, 10, 1.0)
    assert pool.take(10, 2.9) == 20
    with pytest.raises(Exhausted, match="slots") as caught:
        pool.take(1, 2.9)
    assert caught.value.resting == 10
    assert pool.take(10, 3.0) == 0


def test_the_best_fit_is_taken_and_the_rest_stays_free() -> None:
    pool = RegionPool("slots", 100, "--endpoints")
    regions = [(pool.take(n, 0.0), n) for n in (8, 1, 4, 1)]
    pool.release(*regions[0], 0.0)
    pool.release(*regions[2], 0.0)
    assert pool.take(3, 10.0) == regions[2][0]
    assert pool.take(1, 10.0) == regions[2][0] + 3
    assert pool.take(8, 10.0) == 0


def test_regions_of_an_earlier_agent() -> None:
    pool = RegionPool("slots", 100, "--endpoints")
    pool.adopt(np.array([[20, 5], [3, 2]], np.int64), top=40, now=7.0)
    assert pool.in_use == 7
    assert pool.take(10, 8.0) == 40  # the gaps might still be read
    assert {pool.take(15, 9.0), pool.take(15, 9.0)} == {5, 25}
    assert pool.take(3, 9.0) == 0


def test_no_regions_of_an_earlier_agent() -> None:
    pool = RegionPool("slots", 100, "--endpoints")
    pool.adopt(np.zeros((0, 2), np.int64), top=0, now=0.0)
    assert pool.take(100, 0.0) == 0


def test_random_use_of_regions_never_overlaps_nor_leaks() -> None:
    chance = random.Random(2)
    capacity = 5000
    pool = RegionPool("slots", capacity, "--endpoints")
    taken = np.zeros(capacity, bool)  # held or resting
    held: list[tuple[int, int]] = []
    resting: list[tuple[float, int, int]] = []
    now = 0.0
    for _ in range(100_000):
        now += chance.random() * 0.02
        while resting and resting[0][0] + 2.0 <= now:
            _, base, length = resting.pop(0)
            taken[base : base + length] = False
        if chance.random() < 0.55:
            length = chance.choice((1, 2, 3, 10, 11, 60))
            try:
                base = pool.take(length, now)
            except Exhausted:
                continue
            assert not taken[base : base + length].any()
            taken[base : base + length] = True
            held.append((base, length))
        elif held:
            region = held.pop(chance.randrange(len(held)))
            pool.release(*region, now)
            resting.append((now, *region))
    assert pool.in_use == sum(length for _, length in held)
    for region in held:
        pool.release(*region, now)
    assert pool.take(capacity, now + 2.0) == 0  # all of it, in one piece: nothing is lost


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_same_calls_give_the_same_places(calls: list[tuple[bool, int]]) -> None:
    def run() -> list[int]:
        pool = RegionPool("slots", 10_000, "--endpoints", grace=0.0)
        held: list[tuple[int, int]] = []
        places = []
        for now, (take, length) in enumerate(calls):
            if take or not held:
                held.append((pool.take(length, now), length))
                places.append(held[-1][0])
            else:
                pool.release(*held.pop(length % len(held)), now)
        return places

    assert run() == run()
