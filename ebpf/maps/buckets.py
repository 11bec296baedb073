"""A table in buckets, in one mapped array: keys of 24 bytes and a word of 8 for each.

bpf_src/frontend.h says how it lies in memory and how programs look a key up. There is one writer,
and no lock: of every change a reader sees nothing or all. So a key and its word are complete before
the byte in the control word names their place, and that goes first when they go. A place's word
has a generation in its upper part, which is another for each key that had the place, so that a
reader can tell what it compared from what it read. A key that must give way to another moves to its
second bucket, where readers look last, and is there before it goes from the first.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ebpf.errors import LayoutError, MapFull

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]

# First bucket, second bucket and tag, as columns.
Hashed = tuple[Places, Places, npt.NDArray[np.uint8]]

KEY_WORDS = 3
_ELEMENT_WORDS = 4  # a key and its word
_PER_BUCKET = 8
# Share of the places that may be used: two buckets that are both full are then a rarity, and a
# move makes room in them.
_MOST_LOAD = 0.7

_PAYLOAD = np.uint64((1 << 40) - 1)
_GENERATION = np.uint64(1 << 40)
_NO_BITS = np.uint64(0)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_EACH_BYTE = np.uint64(0x0101010101010101)


class Array(Protocol):
    """A mapped array of elements of 32 bytes."""

    name: str
    max_entries: int
    records: np.ndarray[Any, np.dtype[Any]]


def elements_for(keys: int) -> int:
    """How many elements a map needs for a table with room for so many keys."""
    buckets = max(1, -(-int(keys / _MOST_LOAD) // _PER_BUCKET))
    return 1 + -(-buckets // _ELEMENT_WORDS) + _PER_BUCKET * buckets


def keys_for(elements: int) -> int:
    """How many keys a table in a map of so many elements has room for."""
    return int(_buckets_in(elements) * _PER_BUCKET * _MOST_LOAD)


def _buckets_in(elements: int) -> int:
    return (elements - 1) * _ELEMENT_WORDS // (1 + _PER_BUCKET * _ELEMENT_WORDS)


class BucketTable:
    """The table in a map. What a payload is, the low 40 bits of a word, is the caller's; never 0.

    A table that nobody wrote to yet is empty for readers. It keeps no index of its own: finding a
    thousand keys takes less than a millisecond.
    """

    def __init__(self, array: Array) -> None:
        """Raises LayoutError if the map's elements are of another size."""
        words = array.records.view(np.uint64)
        if array.records.dtype.itemsize != 8 * _ELEMENT_WORDS:
            raise LayoutError(f"map {array.name} has elements of {array.records.dtype.itemsize}")
        self._array = array
        self._header = words[:_ELEMENT_WORDS]
        most = _buckets_in(array.max_entries)
        self._buckets = int(self._header[KEY_WORDS]) or most
        first = 1 + -(-self._buckets // _ELEMENT_WORDS)
        if not 0 < self._buckets <= most:
            raise LayoutError(f"map {array.name} says that it has {self._buckets} buckets")
        self._control = words[_ELEMENT_WORDS:][: self._buckets]
        self._tags = self._control.view(np.uint8)
        cells = words[first * _ELEMENT_WORDS :][: self._buckets * _PER_BUCKET * _ELEMENT_WORDS]
        self._cells = cells.reshape(-1, _ELEMENT_WORDS)
        memory: Any = cells  # that arrays are buffers is not in numpy's types
        self._memory = memoryview(memory)  # its stores of one word are quicker than the array's

    @property
    def room(self) -> int:
        """How many keys it may have."""
        return int(len(self._cells) * _MOST_LOAD)

    @property
    def places(self) -> int:
        """How many keys there are places for. Not all can be used."""
        return len(self._cells)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._tags != 0))  # of truth values: four times as quick

    def read(self, without: np.uint64 = _NO_BITS) -> tuple[Words, Words]:
        """All keys that readers find, as (n, 3) words, and their payloads, but for payloads with
        one of the bits `without`; also while somebody else writes."""
        tags = self._tags.copy()
        places = np.flatnonzero(tags)
        before = self._cells[places, KEY_WORDS]
        if without:  # told by the word alone, long before all keys are looked at
            chosen = before & without == 0
            places, before = places[chosen], before[chosen]
        marks = tags[places]
        keys = self._cells[places, :KEY_WORDS]
        after = self._cells[places, KEY_WORDS]
        whole = (before ^ after < _GENERATION) & (after & _PAYLOAD != 0)
        first, second, tags = self._hashed(keys)
        buckets = places // _PER_BUCKET
        whole &= ((buckets == first) | (buckets == second)) & (marks == tags)
        whole[self._twice(places, keys)] = False
        return keys[whole], after[whole] & _PAYLOAD

    def read_part(self, part: slice) -> tuple[Places, Words, Words]:
        """Of these places those that are used, their keys and payloads; for the writer."""
        places = self._used(part)
        return places, self._cells[places, :KEY_WORDS], self._cells[places, KEY_WORDS] & _PAYLOAD

    def find(self, keys: Words) -> Places:
        """The place of each, -1 for one that is not there."""
        return self._find(keys, self._hashed(keys))

    def get(self, keys: Words) -> Words:
        """The payload of each, 0 for one that is not there."""
        places = self.find(keys)
        found = self._cells[places, KEY_WORDS] & _PAYLOAD
        return np.where(places < 0, np.uint64(0), found)

    def put(self, keys: Words, payloads: Words) -> None:
        """Make keys, each given once, lead to these. Those that are there change by one store each.

        Raises MapFull for those without room; all others are written then.
        """
        if not len(keys):
            return
        if not self._header[KEY_WORDS]:
            self._begin()
        hashed = self._hashed(keys)
        places = self._find(keys, hashed)
        there = np.flatnonzero(places >= 0)
        if len(there):
            held = self._cells[places[there], KEY_WORDS]
            self._store(places[there], held & ~_PAYLOAD | payloads[there])
        refused = self._insert(keys, payloads, hashed, np.flatnonzero(places < 0))
        if refused:
            raise MapFull(self._array.name, self.room)

    def raise_by(self, keys: Words, numbers: Words, bits: np.uint64, most: int) -> int:
        """Add these numbers to the payloads of keys, each given once, which have `bits` besides. No
        more than `most` that are not there are entered. Returns how many were not."""
        if not len(keys):
            return 0
        if not self._header[KEY_WORDS]:
            self._begin()
        hashed = self._hashed(keys)
        places = self._find(keys, hashed)
        there = np.flatnonzero(places >= 0)
        self._store(places[there], (self._cells[places[there], KEY_WORDS] | bits) + numbers[there])
        new = np.flatnonzero(places < 0)
        some = new[:most]
        return len(new) - len(some) + self._insert(keys, numbers | bits, hashed, some)

    def set_at(self, places: Places, payloads: Words) -> None:
        """Make the keys in these places lead to something else; for the writer, who found them."""
        self._store(places, self._cells[places, KEY_WORDS] & ~_PAYLOAD | payloads)

    def delete_at(self, places: Places) -> None:
        """Take out the keys in these places; for the writer, who found them."""
        self._vacate(places)

    def delete(self, keys: Words) -> int:
        """Take keys out; returns how many there were."""
        if not len(keys):
            return 0
        places = self.find(keys)
        places = places[places >= 0]
        self._vacate(places)
        return len(places)

    def tidy(self, part: slice = slice(None)) -> int:
        """Take out what readers have no need of, in this part of the places. Of a key that is in
        both its buckets, since a move was interrupted, the second is left; of one that somebody
        put elsewhere, or twice, what is found. Returns how many there were."""
        return self._tidy(self._used(part))

    def tidy_beside(self, found: npt.NDArray[np.bool_]) -> int:
        """The same of all places but those, by number, that `find` gave. Of a key that is twice,
        what was found is left."""
        places = self._used(slice(None))
        empty = self._cells[places, KEY_WORDS] & _PAYLOAD == 0
        return self._tidy(places[~found[places] | empty])

    def _tidy(self, places: Places) -> int:
        twice = self._twice(places, self._cells[places, :KEY_WORDS])
        self._vacate(places[twice])
        places = np.delete(places, twice)
        empty = self._cells[places, KEY_WORDS] & _PAYLOAD == 0
        lost = (self.find(self._cells[places, :KEY_WORDS]) != places) | empty
        self._vacate(places[lost])
        return len(twice) + int(lost.sum())

    def _used(self, part: slice) -> Places:
        """Numbers of those of these places that have a key."""
        return np.flatnonzero(self._tags[part]) + part.indices(len(self._tags))[0]

    def _twice(self, places: Places, keys: Words) -> Places:
        """Which of these, being in the first bucket of their key, are in the second one too."""
        first, second, tags = self._hashed(keys)
        movable = np.flatnonzero((places // _PER_BUCKET == first) & (first != second))
        by_bucket = self._tags.reshape(-1, _PER_BUCKET)
        rows, columns = np.nonzero(by_bucket[second[movable]] == tags[movable, None])
        there = second[movable[rows]] * _PER_BUCKET + columns
        same = (self._cells[there, :KEY_WORDS] == keys[movable[rows]]).all(axis=1)
        found: Places = movable[rows[same]]
        return found

    def _begin(self) -> None:
        """The secrets before the number of buckets, without which nothing is looked up."""
        self._header[:KEY_WORDS] = np.frombuffer(os.urandom(8 * KEY_WORDS), np.uint64)
        self._header[KEY_WORDS] = self._buckets

    def _hashed(self, keys: Words) -> Hashed:
        """First bucket, second bucket and tag of each, as hash_frontend() in C has it."""
        secret = self._header[:KEY_WORDS]
        low = (keys & _LOW) + (secret & _LOW) & _LOW
        high = (keys >> _HALF) + (secret >> _HALF) & _LOW
        product = low * high
        mixed: Words = product[:, 0] + product[:, 1] + product[:, 2]  # quicker than sum(axis=1)
        mixed ^= mixed >> _HALF
        mixed *= _MIX
        mixed ^= mixed >> np.uint64(29)
        buckets, upper = np.uint64(self._buckets), mixed >> _HALF
        first = ((mixed & _LOW) * buckets >> _HALF).astype(np.intp)
        second = (upper * buckets >> _HALF).astype(np.intp)
        tags = upper.astype(np.uint8)
        tags[tags == 0] = 1
        return first, second, tags

    def _find(self, keys: Words, hashed: Hashed) -> Places:
        """The place of each, -1 for one that is not there."""
        first, second, tags = hashed
        by_bucket = self._tags.reshape(-1, _PER_BUCKET)
        found = np.full(len(keys), -1, np.intp)
        for bucket in (second, first):  # of a key that moves, readers find the first
            rows, columns = np.nonzero(by_bucket[bucket] == tags[:, None])
            places = bucket[rows] * _PER_BUCKET + columns
            same = (self._cells[places, :KEY_WORDS] == keys[rows]).all(axis=1)
            found[rows[same]] = places[same]
        return found

    def _insert(self, keys: Words, payloads: Words, hashed: Hashed, left: Places) -> int:
        """Those `left`, which are not there, each into the emptier of its buckets; of those that
        want the same place one after the other. Returns how many had no room."""
        first, second, tags = hashed
        by_bucket = self._tags.reshape(-1, _PER_BUCKET)
        refused = 0
        while len(left):
            one, two = first[left], second[left]
            used = _used_of(self._control[one]), _used_of(self._control[two])
            bucket = np.where(used[0] <= used[1], one, two)
            full = np.minimum(*used) == _PER_BUCKET
            if full.any():
                if self._make_some_room(one[full], two[full]):
                    continue  # which places are free is to be looked at again
                refused += int(full.sum())
                left, bucket = left[~full], bucket[~full]
            place = bucket * _PER_BUCKET + (by_bucket[bucket] == 0).argmax(axis=1)
            chosen = np.arange(len(place))
            if len(place) > 1:
                place, chosen = np.unique(place, return_index=True)
            which = left[chosen]
            self._occupy(place, keys[which], payloads[which], tags[which])
            left = np.delete(left, chosen)
        return refused

    def _make_some_room(self, one: Places, two: Places) -> bool:
        """For one of several keys, all of whose buckets are full."""
        return any(self._make_room(*pair) for pair in zip(one.tolist(), two.tolist(), strict=True))

    def _make_room(self, *buckets: int) -> bool:
        """Move a key from one of these, which are full, to its second bucket. False if all are in
        theirs already, or that is full too."""
        for bucket in buckets:
            places = np.arange(bucket * _PER_BUCKET, (bucket + 1) * _PER_BUCKET)
            first, second, tags = self._hashed(self._cells[places, :KEY_WORDS])
            for index in np.flatnonzero((first == bucket) & (second != bucket)).tolist():
                base = int(second[index]) * _PER_BUCKET
                empty = np.flatnonzero(self._tags[base : base + _PER_BUCKET] == 0)
                if len(empty):
                    moved = places[index : index + 1]
                    payload = self._cells[moved, KEY_WORDS] & _PAYLOAD
                    key, tag = self._cells[moved, :KEY_WORDS], tags[index : index + 1]
                    self._occupy(base + empty[:1], key, payload, tag)
                    self._vacate(moved)
                    return True
        return False

    def _occupy(
        self, places: Places, keys: Words, payloads: Words, tags: npt.NDArray[np.uint8]
    ) -> None:
        words = self._cells[places, KEY_WORDS]
        unfinished = words & _PAYLOAD != 0  # of a writer that did not come to the control word
        words = np.where(unfinished, (words & ~_PAYLOAD) + _GENERATION, words)
        self._store(places[unfinished], words[unfinished])
        self._write_keys(places, keys)
        self._store(places, words | payloads)
        self._write_tags(places, tags)

    def _vacate(self, places: Places) -> None:
        self._write_tags(places, np.zeros(len(places), np.uint8))
        words = self._cells[places, KEY_WORDS]
        self._store(places, (words & ~_PAYLOAD) + _GENERATION)

    # All that a reader can see is written by these three.

    def _store(self, places: Places, words: Words) -> None:
        """One store of eight bytes each, whatever numpy does with many."""
        memory = self._memory
        for place, word in zip(places.tolist(), words.tolist(), strict=True):
            memory[place * _ELEMENT_WORDS + KEY_WORDS] = word

    def _write_keys(self, places: Places, keys: Words) -> None:
        self._cells[places, :KEY_WORDS] = keys

    def _write_tags(self, places: Places, tags: npt.NDArray[np.uint8]) -> None:
        self._tags[places] = tags


def _used_of(control: Words) -> Words:
    """How many bytes of each word are not zero: places of a bucket that are used."""
    bits = control | control >> np.uint64(4)
    bits |= bits >> np.uint64(2)
    bits |= bits >> np.uint64(1)
    found: Words = (bits & _EACH_BYTE) * _EACH_BYTE >> np.uint64(56)
    return found
