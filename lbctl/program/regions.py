"""Region words read back: where sets and tables lie, and which of them cannot be right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts

Numbers = npt.NDArray[np.int64]


def regions_of(words: npt.NDArray[np.uint64]) -> Numbers:
    """(row, base, length) of every non-empty region in (n, 2) words; a shared one once."""
    lengths = (words >> np.uint64(consts.REGION_LENGTH_SHIFT)) & np.uint64(
        consts.REGION_LENGTH_MASK
    )
    bases = words & np.uint64(consts.REGION_BASE_MASK)
    rows = np.repeat(np.arange(len(words)), 2)
    table = np.column_stack([rows, bases.reshape(-1), lengths.reshape(-1)]).astype(np.int64)
    return np.unique(table[table[:, 2] > 0], axis=0)


def misplaced(regions: Numbers, capacity: int) -> Numbers:
    """Rows of those that lie beyond the map or share slots with another's."""
    ordered = regions[np.argsort(regions[:, 1], kind="stable")]
    ends = np.maximum.accumulate(ordered[:, 1] + ordered[:, 2])
    overlapping = np.flatnonzero(ordered[1:, 1] < ends[:-1])
    return np.unique(
        np.concatenate(
            [
                regions[regions[:, 1] + regions[:, 2] > capacity, 0],
                ordered[overlapping, 0],
                ordered[overlapping + 1, 0],
            ]
        )
    )
