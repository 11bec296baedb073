"""What the table of frontends says of endpoints: who has one, and who gives way where room is
short."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf.maps.buckets import elements_for
from lbctl.addresses import parse_address
from lbctl.datapath import consts
from lbctl.datapath import frontends as frontends_module
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.records import frontend_key, marker_key
from lbctl.datapath.tables import Records
from tests.support.fake_tables import BACKEND, FRONTEND, FakeArray


def table(keys: int) -> Frontends:
    return Frontends(FakeArray("frontends", FRONTEND, elements_for(keys)))


def backends(*numbers: int) -> Records:
    """One for each number, which is its endpoint; 0 is an element that holds none."""
    records = np.zeros(len(numbers), BACKEND.dtype)
    records["addr"]["w"][:, 3] = numbers
    records["port"] = np.array(numbers) > 0
    return records


def counts(frontends: Frontends, most: int = 30) -> dict[int, int]:
    found = {}
    for number in range(1, most):
        entry = frontends.get(endpoint(number))
        if entry:
            assert entry[1] == consts.FRONTEND_ENDPOINT
            found[number] = entry[0]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), max_size=8), max_size=12), st.randoms())
def test_an_endpoint_is_there_as_long_as_a_backend_has_it(
    groups: list[list[int]], chance: random.Random
) -> None:
    """And a start after a kill counts the same; nothing of it is a frontend."""
    frontends = table(100)
    held: list[int] = []
    for group in groups:
        if held and chance.random() < 0.5:
            gone = [held.pop(chance.randrange(len(held))) for _ in range(min(3, len(held)))]
            frontends.release(backends(*gone))
        assert frontends.hold(backends(*group)) == 0
        held += group
        wanted = {n: count for n, count in Counter(held).items() if n}
        assert counts(frontends) == wanted
        assert frontends.repair(backends(*held)) == 0
    assert len(frontends.read_all().keys) == 0
    frontends.hold(backends(25, 25, *held[:1]))
    frontends.repair(backends(*held))
    assert counts(frontends) == {n: count for n, count in Counter(held).items() if n}


def test_endpoints_are_counted_where_all_keys_have_one_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frontends_module, "_MIX", np.zeros(3, np.uint64))
    frontends = table(100)
    assert frontends.hold(backends(1, 2, 1, 3, 2, 1)) == 0
    assert counts(frontends) == {1: 3, 2: 2, 3: 1}


def test_endpoints_give_way_to_frontends() -> None:
    """They are left out while there is little room, and come in with the next start."""
    frontends = table(200)
    every = backends(*range(1, 400))
    left_out = frontends.hold(every)
    assert left_out > 0
    assert len(frontends) >= frontends.room
    address = parse_address("10.96.0.1")
    names = [frontend_key(address, port, 6) for port in range(1, 21)]
    frontends.put([(key, 1, consts.FRONTEND_CLUSTER_IP) for key in names])
    frontends.put([(marker_key(address), 0, consts.FRONTEND_ADDRESS)])
    assert all(frontends.get(key) == (1, consts.FRONTEND_CLUSTER_IP) for key in names)
    known = [key for n in range(1, 400) for key in entries(n) if frontends.get(key)]
    assert len(known) == 2 * 399 - left_out
    frontends.release(every)
    assert len(frontends) == 21
    some = range(1, 50)
    assert frontends.repair(backends(*some)) == 2 * len(some)
    assert counts(frontends, most=400) == dict.fromkeys(some, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=20), st.lists(st.integers(1, 12), max_size=20))
def test_wrong_counts_are_told_and_put_right_one_by_one(held: list[int], wanted: list[int]) -> None:
    """What the table says is `held`; backends there are those of `wanted`."""
    frontends, there = table(100), backends(*wanted)
    frontends.hold(backends(*held))
    says, has = Counter(held), Counter(wanted)
    found = {(m.key, m.says, m.has) for m in frontends.miscounted(there)}
    wrong = [n for n in range(1, 13) if says[n] != has[n]]
    assert found == {(key, says[n], has[n]) for n in wrong for key in entries(n)}
    counted = np.zeros(frontends.places, np.uint32)
    missing = frontends.count(there, counted)
    _, told = frontends.read_part(slice(0, frontends.places))
    differing = told.keys[told.counts != counted[told.places]]
    doubtful = [*missing, *differing]
    names = sorted(key for n in wrong for key in entries(n))
    assert sorted(key.tobytes()[:19] for key in doubtful) == names
    assert all(frontends.recount(key, there) for key in doubtful)
    assert counts(frontends) == dict(has)
    assert not any(frontends.recount(key, there) for key in doubtful)


def endpoint(number: int) -> bytes:
    record = backends(number)[0]
    key: bytes = record["addr"].tobytes() + record["port"].tobytes() + b"\0"
    return key


def entries(number: int) -> tuple[bytes, bytes]:
    """The endpoint, and its address by itself."""
    key = endpoint(number)
    return key, key[:16] + bytes([0, 0, consts.FRONTEND_ENDPOINT_ADDRESS])
