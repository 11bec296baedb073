"""Reading sets of endpoints from `slots` and `backends`, the mapped arrays that hold them.

The arrays are the only copy: the planner keeps a region word per service, no list of endpoints.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.records import IDENTITY_BYTES, address_columns, rows_as_bytes
from lbctl.datapath.shares import Shape

UNKNOWN = -1  # in place of a region word whose content cannot be trusted


def region_word(base: int, length: int) -> int:
    """The word for `length` slots from `base`."""
    return base | length << consts.REGION_LENGTH_SHIFT


def region_of(word: int) -> tuple[int, int]:
    """Base and length; length 0 for an empty or unknown set."""
    if word == UNKNOWN:
        return 0, 0
    length = word >> consts.REGION_LENGTH_SHIFT & consts.REGION_LENGTH_MASK
    return word & consts.REGION_BASE_MASK, length


class Members(NamedTuple):
    """The backends of a set, in the order of its slots."""

    ids: list[int]
    identities: bytes  # one after the other
    flags: bytes  # one byte each


class Contents(Protocol):
    """What the planner reads."""

    def region(self, word: int) -> list[int]:
        """Backend ids of a set."""

    def members(self, words: Sequence[int]) -> list[Members]:
        """Of each of these sets."""

    def weights(self, ids: list[int]) -> list[tuple[int, int]]:
        """Weight of each, and since when it is there."""

    def shape(self, word: int) -> Shape:
        """What the slots of a set stand for besides their own endpoints."""

    def table(self, word: int) -> npt.NDArray[np.uint32]:
        """Backend ids of a table, by hash."""


class ArrayContents:
    """`Contents` of the mapped records."""

    __slots__ = ("_backends", "_columns", "_records", "_slots", "_tables")

    def __init__(
        self, slots: npt.NDArray[Any], backends: npt.NDArray[Any], tables: npt.NDArray[Any]
    ) -> None:
        self._records = slots
        self._tables = table_places(tables)
        self._slots = slots["backend"]
        self._backends = backends
        self._columns = address_columns(backends.dtype, "addr", "port", "flags")

    def region(self, word: int) -> list[int]:
        """Backend ids of a set, in the order of its slots."""
        base, length = region_of(word)
        ids: list[int] = self._slots[base : base + length].tolist()
        return ids

    def members(self, words: Sequence[int]) -> list[Members]:
        """Of each of these sets. Read together: numpy takes as long for one as for a hundred."""
        bounds = [region_of(word) for word in words]
        slots = np.concatenate([self._slots[base : base + length] for base, length in bounds])
        rows = rows_as_bytes(self._backends[slots])[:, self._columns]
        ids, flags = slots.tolist(), rows[:, IDENTITY_BYTES].tobytes()
        identities, width, start = rows[:, :IDENTITY_BYTES].tobytes(), IDENTITY_BYTES, 0
        found = []
        for _, length in bounds:
            end = start + length
            found.append(
                Members(ids[start:end], identities[start * width : end * width], flags[start:end])
            )
            start = end
        return found

    def weights(self, ids: list[int]) -> list[tuple[int, int]]:
        """Weight of each, and since when it is there."""
        found = self._backends[ids]
        return list(zip(found["weight"].tolist(), found["since"].tolist(), strict=True))

    def shape(self, word: int) -> Shape:
        """A copy of what the slots of a set stand for besides their own endpoints."""
        base, length = region_of(word)
        found = self._records[base : base + length]
        return Shape(found["share"].copy(), found["other"].copy())

    def table(self, word: int) -> npt.NDArray[np.uint32]:
        """Backend ids of a table, by hash: the memory itself."""
        base, length = region_of(word)
        return self._tables[base : base + length]


def table_places(records: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The records of `hash_tables` as one backend id per place, in the same memory."""
    places: npt.NDArray[np.uint32] = records["backend"].reshape(-1)
    return places
