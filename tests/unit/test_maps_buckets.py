"""The table in buckets against a dict, and what a reader sees between any two of its stores."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf.errors import LayoutError, MapFull
from ebpf.layouts import Field, Record
from ebpf.maps.buckets import BucketTable, Places, Words, elements_for
from tests.support.fake_tables import FakeArray

ELEMENT = Record("element", 32, (Field("words", 0, 32, 4, "u64"),))
LOW = 0xFFFFFFFF
PAYLOAD = (1 << 40) - 1


def array(keys: int) -> FakeArray:
    return FakeArray("table", ELEMENT, elements_for(keys))


def key(number: int) -> list[int]:
    return [number, number * 7, 80]


def words(*numbers: int) -> Words:
    return np.array([key(n) for n in numbers], np.uint64).reshape(-1, 3)


def payloads(*numbers: int) -> Words:
    return np.array(numbers, np.uint64)


def looked_up(memory: FakeArray, number: int) -> int:
    """A plain reading of frontend_word() in bpf_src/frontend.h: the payload, or 0."""
    elements = memory.records["words"].tolist()
    secret, buckets = elements[0][:3], elements[0][3]
    mixed = sum(
        ((x + k) & LOW) * ((x >> 32) + (k >> 32) & LOW)
        for x, k in zip(key(number), secret, strict=True)
    )
    mixed &= (1 << 64) - 1
    mixed ^= mixed >> 32
    mixed = mixed * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    mixed ^= mixed >> 29
    tag = mixed >> 32 & 0xFF or 1
    for half in (mixed & LOW, mixed >> 32):
        bucket = half * buckets >> 32
        control = elements[1 + bucket // 4][bucket % 4]
        for place in range(8):
            if control >> 8 * place & 0xFF == tag:
                *held, word = elements[1 + -(-buckets // 4) + 8 * bucket + place]
                if held == key(number) and word & PAYLOAD:
                    return int(word & PAYLOAD)
    return 0


class Watched(BucketTable):
    """Calls `seen` after every store, those that other tables of this kind make in one step too."""

    def __init__(self, memory: FakeArray, seen: Callable[[], None]) -> None:
        super().__init__(memory)
        self.seen = seen

    def _store(self, places: Places, stored: Words) -> None:
        for index in range(len(places)):
            super()._store(places[index : index + 1], stored[index : index + 1])
            self.seen()

    def _write_keys(self, places: Places, keys: Words) -> None:
        for index, place in enumerate(places.tolist()):
            for part in range(3):  # in the worst order: each word by itself
                self._cells[place, part] = keys[index, part]
                self.seen()

    def _write_tags(self, places: Places, tags: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        for index in range(len(places)):
            super()._write_tags(places[index : index + 1], tags[index : index + 1])
            self.seen()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.dictionaries(st.integers(1, 40), st.integers(1, PAYLOAD))),
        st.tuples(st.just("delete"), st.sets(st.integers(1, 40))),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.sampled_from([1, 8, 28, 60]))
def test_it_is_a_dict(operations: list[tuple[str, dict[int, int]]], room: int) -> None:
    """As long as there is room; beyond that what was refused is missing, and nothing else."""
    memory = array(room)
    table = BucketTable(memory)
    held: dict[int, int] = {}
    for what, numbers in operations:
        if what == "delete":
            gone = numbers & held.keys()
            assert table.delete(words(*numbers)) == len(gone)
            held = {n: p for n, p in held.items() if n not in gone}
        elif numbers:
            try:
                table.put(words(*numbers), payloads(*numbers.values()))
                held |= numbers
            except MapFull:
                assert len(held | numbers) > table.room
                known = {n for n in numbers if looked_up(memory, n)}
                assert held.keys() & numbers.keys() <= known
                held |= {n: numbers[n] for n in known}
        assert [looked_up(memory, n) for n in range(41)] == [held.get(n, 0) for n in range(41)]
        assert table.get(words(*range(41))).tolist() == [held.get(n, 0) for n in range(41)]
        keys, found = BucketTable(memory).read()
        assert dict(zip(keys[:, 0].tolist(), found.tolist(), strict=True)) == held
        assert len(table) == len(held)
        assert table.tidy() == 0


@settings(max_examples=40, deadline=None)
@given(OPERATIONS)
def test_between_any_two_stores_a_reader_sees_the_old_or_the_new(
    operations: list[tuple[str, dict[int, int]]],
) -> None:
    """In a table that is full, so that keys give way to others; and what a change is not about
    never changes."""
    memory = array(22)
    before: dict[int, int] = {}
    after: dict[int, int] = {}

    def look() -> None:
        for number in range(1, 41):
            found = looked_up(memory, number)
            assert found in (before.get(number, 0), after.get(number, 0)), number

    table = Watched(memory, look)
    for what, numbers in operations:
        if what == "put" and len(before | numbers) > table.room:
            continue
        after = (
            before | numbers
            if what == "put"
            else {n: p for n, p in before.items() if n not in numbers}
        )
        if what == "put":
            try:
                table.put(words(*numbers), payloads(*numbers.values()))
            except MapFull:  # both buckets of one full of keys in their second one
                after = {n: p for n in range(1, 41) if (p := looked_up(memory, n))}
        else:
            table.delete(words(*numbers))
        before = after


class Killed(Exception):
    """The writer is no more."""


@settings(max_examples=60, deadline=None)
@given(OPERATIONS, st.integers(1, 60))
def test_a_writer_that_is_killed_leaves_a_table_that_the_next_one_mends(
    operations: list[tuple[str, dict[int, int]]], stores: int
) -> None:
    memory = array(22)
    left = stores

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    table: BucketTable = Watched(memory, count)
    before: dict[int, int] = {}
    wanted: dict[int, int] = {}
    try:
        for what, numbers in operations:
            if what == "delete":
                wanted = {n: p for n, p in before.items() if n not in numbers}
                table.delete(words(*numbers))
            elif len(before | numbers) <= table.room:
                wanted = before | numbers
                table.put(words(*numbers), payloads(*numbers.values()))
            before = wanted
    except (Killed, MapFull):
        pass
    table = BucketTable(memory)
    table.tidy()
    keys, found = table.read()
    assert len(set(map(bytes, keys))) == len(keys) == len(table)
    for number, payload in zip(keys[:, 0].tolist(), found.tolist(), strict=True):
        assert payload in (before.get(number, 0), wanted.get(number, 0))
    table.delete(words(*range(1, 41)))
    assert len(table) == 0
    table.put(words(*range(1, 15)), payloads(*range(1, 15)))
    assert [looked_up(memory, n) for n in range(1, 15)] == list(range(1, 15))


def test_keys_where_nobody_looks_are_not_there_and_go_with_the_next_tidying() -> None:
    """Somebody wrote elsewhere than into the right places: tags, keys, payloads."""
    memory = array(200)
    table = BucketTable(memory)
    numbers = range(1, 101)
    table.put(words(*numbers), payloads(*numbers))
    elements = memory.records["words"].view(np.uint64).reshape(-1, 4)
    tags = elements[1:].reshape(-1).view(np.uint8)[: table.places]
    cells = elements[len(elements) - table.places :]
    places = np.flatnonzero(tags)
    tags[places[0]] ^= 0x80  # not among those that have this tag
    cells[places[1], :3] = cells[places[-1], :3]  # twice, in one place of which it cannot be
    cells[places[2], 3] = 0  # leads to nothing
    broken = [n for n in numbers if not looked_up(memory, n)]
    assert len(broken) == 3
    keys, found = table.read()
    assert sorted(found.tolist()) == [n for n in numbers if n not in broken]
    assert len(keys) == 97
    assert sum(table.tidy(slice(start, start + 10)) for start in range(0, table.places, 10)) == 3
    assert len(table) == 97
    assert table.tidy() == 0
    table.put(words(*broken), payloads(*broken))
    assert [looked_up(memory, n) for n in numbers] == list(numbers)


def test_a_place_that_another_key_gets_has_another_generation() -> None:
    """Or a reader could take the word of the one for that of the other."""
    memory = array(1)
    table = BucketTable(memory)
    seen: dict[int, set[int]] = {}
    for number in range(1, 200):
        table.put(words(number), payloads(5))
        (place,) = np.flatnonzero(memory.records["words"][2:, 3] & np.uint64(PAYLOAD)).tolist()
        word = int(memory.records["words"][2 + place, 3])
        assert word not in seen.setdefault(place, set())
        seen[place].add(word)
        table.delete(words(number))


def test_a_move_makes_room_and_loses_nobody() -> None:
    """Two buckets: whoever is in the fuller one by choice can go to the other."""
    moved = 0
    for seed in range(30):
        memory = array(11)  # two buckets, filled to the last place
        table = BucketTable(memory)
        numbers = [seed * 100 + n for n in range(1, 15)]
        places: dict[int, int] = {}
        for n in numbers:
            try:
                table.put(words(n), payloads(n))
            except MapFull:
                continue
            now = {m: int(table._find(words(m), table._hashed(words(m)))[0]) for m in (*places, n)}
            moved += sum(now[m] != place for m, place in places.items())
            places = now
        assert [looked_up(memory, n) for n in places] == list(places)
        assert len(places) >= 11, "as many as it says that it has room for"
    assert moved, "no key had to move: this tests nothing"


def test_a_hundred_thousand_at_once_and_one_by_one_are_the_same() -> None:
    numbers = np.arange(1, 100_001)
    table = BucketTable(array(100_000))
    keys = np.column_stack([numbers, numbers * 7, np.full(len(numbers), 80)]).astype(np.uint64)
    table.put(keys, numbers.astype(np.uint64))
    assert table.get(keys).tolist() == numbers.tolist()
    assert len(table) == 100_000
    assert table.delete(keys[::2]) == 50_000
    assert np.count_nonzero(table.get(keys)) == 50_000


def test_nothing_is_found_in_a_table_that_nobody_wrote_to() -> None:
    memory = array(10)
    table = BucketTable(memory)
    assert looked_up(memory, 1) == 0
    assert len(table.read()[0]) == 0
    assert table.delete(words(1)) == 0
    assert not memory.records["words"].any()


def test_maps_that_cannot_be_such_a_table() -> None:
    with pytest.raises(LayoutError, match="elements of 8"):
        BucketTable(FakeArray("table", Record("x", 8, (Field("a", 0, 8, 0, "u64"),)), 100))
    memory = array(10)
    memory.records["words"][0, 3] = 1 << 20
    with pytest.raises(LayoutError, match="buckets"):
        BucketTable(memory)
