"""The table of frontends: what address, port and protocol lead to, which addresses services have,
and which endpoints there are. Words of it are packed and unpacked here alone."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ebpf.maps.buckets import KEY_WORDS, BucketTable, Words
from lbctl.datapath import consts
from lbctl.datapath.records import ADDRESS_BYTES, IDENTITY_BYTES
from lbctl.datapath.tables import ArrayTable, Records

_KEY_BYTES = IDENTITY_BYTES + 1  # address, port, protocol; then zeros
_FLAGS = np.uint64(consts.FRONTEND_FLAGS_SHIFT)
_SERVICE = np.uint64(consts.FRONTEND_SERVICE_MASK)
_ENDPOINT = np.uint64(consts.FRONTEND_ENDPOINT << consts.FRONTEND_FLAGS_SHIFT)

# Odd numbers, without a pattern, that words of keys are multiplied with.
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)

# Share of the places up to which endpoints are entered. Those that left a moment ago rest there as
# long as there may be flows; what is not entered is only not known as an endpoint where somebody
# calls it by its own address.
_MOST_LOAD = 0.8


class Entries(NamedTuple):
    """Frontends and addresses, as columns in one order."""

    keys: npt.NDArray[np.uint8]  # (n, 19): address, port, protocol
    services: npt.NDArray[np.int64]
    flags: npt.NDArray[np.int64]

    def addresses(self) -> list[bytes]:
        """The address of each."""
        return [row.tobytes() for row in self.keys[:, :ADDRESS_BYTES]]


class Held(NamedTuple):
    """Endpoints, as columns: where each is in the table, and how many backends have it."""

    places: npt.NDArray[np.intp]
    keys: Words
    counts: Words


class Miscounted(NamedTuple):
    """An endpoint whose entry is wrong: how many backends it says, and how many there are."""

    key: bytes
    says: int
    has: int


class Frontends:
    """The table in its map. Keys are those of datapath/records.py."""

    def __init__(self, table: ArrayTable) -> None:
        self._table = BucketTable(table)

    @property
    def room(self) -> int:
        """How many entries there may be, endpoints too."""
        return self._table.room

    @property
    def places(self) -> int:
        """How many places there are, by number. Not all can be used."""
        return self._table.places

    def __len__(self) -> int:
        return len(self._table)

    def get(self, key: bytes) -> tuple[int, int] | None:
        """Service and flags, None if there is no such entry."""
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """The same of each."""
        words = self._table.get(_words(keys)).tolist()
        return [
            (w & consts.FRONTEND_SERVICE_MASK, w >> consts.FRONTEND_FLAGS_SHIFT) if w else None
            for w in words
        ]

    def put(self, entries: Sequence[tuple[bytes, int, int]]) -> None:
        """Key, service and flags of each, no key twice. Raises MapFull."""
        services = np.array([service for _, service, _ in entries], np.uint64)
        flags = np.array([flags for _, _, flags in entries], np.uint64)
        self._table.put(_words([key for key, _, _ in entries]), services | flags << _FLAGS)

    def delete(self, keys: Iterable[bytes]) -> int:
        """Returns how many there were."""
        return self._table.delete(_words(list(keys)))

    def read_all(self) -> Entries:
        """All but the endpoints."""
        return _entries(*self._table.read(without=_ENDPOINT))

    def read_part(self, part: slice) -> tuple[Entries, Held]:
        """What is in these places, as the writer sees it."""
        places, keys, words = self._table.read_part(part)
        chosen = words & _ENDPOINT == 0
        held = Held(places[~chosen], keys[~chosen], words[~chosen] & _SERVICE)
        return _entries(keys[chosen], words[chosen]), held

    def tidy(self, part: slice) -> int:
        """Take out of these places what no reader finds there. Returns how many there were."""
        return self._table.tidy(part)

    def hold(self, backends: Records) -> int:
        """As many more of `backends` have each of these endpoints. Returns how many new ones were
        left out for want of room: frontends go before them."""
        keys, counts = _counted(backends)
        return self._table.raise_by(keys, counts, _ENDPOINT, self._spare())

    def release(self, backends: Records) -> None:
        """As many fewer have them; an endpoint that none has any more goes."""
        keys, counts = _counted(backends)
        had = self._table.get(keys)
        left = (had & _SERVICE) > counts
        self._table.put(keys[left], had[left] - counts[left])
        self._table.delete(keys[~left])

    def repair(self, backends: Records) -> int:
        """Make the table whole after a writer that was killed: endpoints are those of `backends`,
        and what it moved is in one place. Returns how many entries had to be written.

        Every start does this, and nearly always there is nothing to write: so endpoints are looked
        up, and counted where they are, which is quicker than sorting them.
        """
        keys = _keys_of(backends)
        found = self._table.find(keys)
        stored = self._table.tidy_beside(self._hits(found) > 0)
        if stored:
            found = self._table.find(keys)
        counts = self._hits(found)
        places, _, words = self._table.read_part(slice(None))
        has = counts[places].astype(np.uint64)
        entered = words & _ENDPOINT != 0
        gone, wrong = entered & (has == 0), entered & (has != 0) & (words != has | _ENDPOINT)
        self._table.set_at(places[wrong], has[wrong] | _ENDPOINT)
        self._table.delete_at(places[gone])
        stored += int(wrong.sum()) + int(gone.sum())
        return stored + self._enter(*_distinct(keys[found < 0]))

    def _hits(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """How often each place is among these, by number; -1 stands for none."""
        return np.bincount(places[places >= 0], minlength=self._table.places)

    def count(self, backends: Records, counted: npt.NDArray[np.uint32]) -> Words:
        """Add to `counted`, by place, how many of `backends` have each endpoint. Returns the keys
        of endpoints that have no entry."""
        keys, counts = _counted(backends)
        there = self._table.get(keys) & _ENDPOINT != 0
        counted[self._table.find(keys[there])] += counts[there].astype(np.uint32)
        missing: Words = keys[~there]
        return missing[: self._spare()]

    def recount(self, key: Words, backends: Records) -> bool:
        """Make the entry of one endpoint say how many of `backends` have it; returns whether it
        did not."""
        wanted, counts = _counted(backends[_may_have(key, backends)])
        same = (wanted == key).all(axis=1)
        if same.any():
            return self._correct(wanted[same], counts[same]) > 0
        return self._table.delete(key.reshape(1, KEY_WORDS)) > 0

    def miscounted(self, backends: Records) -> Iterator[Miscounted]:
        """Endpoints whose entries are not what `repair` would make them; where there is no room,
        entries may be missing."""
        wanted, counts = _counted(backends)
        for key in self._not_among(wanted):
            says = int(self._table.get(key.reshape(1, KEY_WORDS))[0] & _SERVICE)
            yield Miscounted(_as_key(key), says, 0)
        had = self._table.get(wanted)
        wrong = np.flatnonzero((had != 0) & (had != counts | _ENDPOINT))
        missing = np.flatnonzero(had == 0)[: self._spare()]
        for index in np.concatenate([wrong, missing]).tolist():
            says, has = int(had[index] & _SERVICE), int(counts[index])
            yield Miscounted(_as_key(wanted[index]), says, has)

    def _not_among(self, wanted: Words) -> Words:
        """Keys of endpoints that are entered and not among these."""
        keys, words = self._table.read()
        keys = keys[words & _ENDPOINT != 0]
        others: Words = keys[~np.isin(_as_strings(keys), _as_strings(wanted))]
        return others

    def _correct(self, wanted: Words, counts: Words) -> int:
        """Entries of these say these counts; returns how many did not."""
        had = self._table.get(wanted)
        wrong = (had != 0) & (had != counts | _ENDPOINT)
        self._table.put(wanted[wrong], counts[wrong] | _ENDPOINT)
        return int(wrong.sum()) + self._enter(wanted[had == 0], counts[had == 0])

    def _enter(self, keys: Words, counts: Words) -> int:
        """Endpoints that are not there, as far as there is room; returns how many."""
        if not len(keys):
            return 0
        return len(keys) - self._table.raise_by(keys, counts, _ENDPOINT, self._spare())

    def _spare(self) -> int:
        """How many endpoints may be entered."""
        return max(0, int(self._table.places * _MOST_LOAD) - len(self._table))


def _words(keys: Sequence[bytes]) -> Words:
    raw = np.zeros((len(keys), 8 * KEY_WORDS), np.uint8)
    raw[:, :_KEY_BYTES] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
    return raw.view(np.uint64)


def _entries(keys: Words, words: Words) -> Entries:
    rows = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, 8 * KEY_WORDS)
    services, flags = words & _SERVICE, words >> _FLAGS
    return Entries(rows[:, :_KEY_BYTES], services.astype(np.int64), flags.astype(np.int64))


def _as_key(key: Words) -> bytes:
    return key.tobytes()[:_KEY_BYTES]


def _may_have(key: Words, backends: Records) -> npt.NDArray[np.bool_]:
    """Which of `backends` may have this endpoint, by what mostly differs: all of it is compared of
    few."""
    raw = key.tobytes()
    last = np.frombuffer(raw[ADDRESS_BYTES - 4 : ADDRESS_BYTES], np.uint32)
    port = np.frombuffer(raw[ADDRESS_BYTES:IDENTITY_BYTES], np.uint16)
    found: npt.NDArray[np.bool_] = backends["addr"]["w"][:, 3] == last
    if port:  # else it is an address by itself
        found &= backends["port"] == port
    return found


def _keys_of(backends: Records) -> Words:
    """Keys of the endpoints of those elements that hold one, and then of their addresses."""
    used = backends[backends["port"] != 0]
    raw = np.zeros((len(used), 8 * KEY_WORDS), np.uint8)
    raw.view(np.uint32)[:, : ADDRESS_BYTES // 4] = used["addr"]["w"]
    raw.view(np.uint16)[:, ADDRESS_BYTES // 2] = used["port"]
    by_address = raw.copy()
    by_address[:, ADDRESS_BYTES:IDENTITY_BYTES] = 0
    by_address[:, IDENTITY_BYTES] = consts.FRONTEND_ENDPOINT_ADDRESS
    return np.concatenate([raw, by_address]).view(np.uint64)


def _counted(backends: Records) -> tuple[Words, Words]:
    """The same, each once; and how many have it."""
    return _distinct(_keys_of(backends))


def _distinct(keys: Words) -> tuple[Words, Words]:
    """Each of these once, and how often it is there. They are ordered by a number made of each,
    far quicker than by all of it, unless two have the same, which is next to never."""
    numbers = keys[:, 0] * _MIX[0] ^ keys[:, 1] * _MIX[1] ^ keys[:, 2] * _MIX[2]
    order = np.argsort(numbers)
    ordered, numbers = keys[order], numbers[order]
    same = (ordered[1:] == ordered[:-1]).T
    new = ~(same[0] & same[1] & same[2])
    if (new & (numbers[1:] == numbers[:-1])).any():
        found, counts = np.unique(_as_strings(keys), return_counts=True)
        return found.view(np.uint64).reshape(-1, KEY_WORDS), counts.astype(np.uint64)
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), new]))
    return ordered[first], np.diff(first, append=len(keys)).astype(np.uint64)


def _as_strings(keys: Words) -> npt.NDArray[np.bytes_]:
    """One item per row, since numpy sorts single items far quicker than rows, and byte strings
    quicker than what is of no type."""
    return np.ascontiguousarray(keys).view(f"S{8 * KEY_WORDS}").reshape(-1)
