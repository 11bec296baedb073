"""The Python twin of `filter_hash` in bpf_src/filter.h: which bit stands for an address."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_WORDS = np.array([0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x9E3779B1], np.uint32)
_NUMBER = np.uint32(0x165667B1)
_LAST = np.uint32(0x2C1B3C6D)


def hashed(
    addresses: npt.NDArray[np.uint8], numbers: npt.NDArray[Any], bits: int
) -> npt.NDArray[np.uint32]:
    """Bit numbers in a filter of 2**`bits` bits, one per row of an (n, 16) array of address bytes
    and number beside it (a port, say)."""
    # numpy's unsigned arrays wrap as C's do.
    words = np.ascontiguousarray(addresses).view(np.uint32).reshape(-1, 4)
    mixed: npt.NDArray[np.uint32] = (words * _WORDS).sum(axis=1, dtype=np.uint32)
    mixed += numbers.astype(np.uint32) * _NUMBER
    mixed ^= mixed >> np.uint32(15)
    mixed *= _LAST
    return mixed >> np.uint32(32 - bits)
