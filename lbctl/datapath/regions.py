"""Reading sets of endpoints from `slots` and `backends`, the mapped arrays that hold them.

The arrays are the only copy: the planner keeps a region word per service, no list of endpoints.
"""

from typing import Any, Protocol

import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.records import IDENTITY_BYTES, address_columns, rows_as_bytes

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


class Contents(Protocol):
    """What the planner reads."""

    def region(self, word: int) -> list[int]:
        """Backend ids of a set."""

    def backends(self, ids: list[int]) -> list[tuple[bytes, int]]:
        """Identity and flags of each."""


class ArrayContents:
    """`Contents` of the mapped `slots` and `backends` records."""

    __slots__ = ("_backends", "_flags", "_identity", "_slots")

    def __init__(self, slots: npt.NDArray[Any], backends: npt.NDArray[Any]) -> None:
        self._slots = slots["backend"]
        self._backends = backends
        self._flags = backends["flags"]
        self._identity = address_columns(backends.dtype, "addr", "port")

    def region(self, word: int) -> list[int]:
        """Backend ids of a set, in the order of its slots."""
        base, length = region_of(word)
        ids: list[int] = self._slots[base : base + length].tolist()
        return ids

    def backends(self, ids: list[int]) -> list[tuple[bytes, int]]:
        """Identity and flags of each, in the order of `ids`."""
        raw = rows_as_bytes(self._backends[ids])[:, self._identity].tobytes()
        flags: list[int] = self._flags[ids].tolist()
        width = IDENTITY_BYTES
        return [(raw[i * width : (i + 1) * width], flag) for i, flag in enumerate(flags)]
