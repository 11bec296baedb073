"""Slots read back: how likely each endpoint of a set is (struct slot in bpf_src/types.h)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ONE = 1 << 16  # of which a share is a part


class Shape(NamedTuple):
    """By slot: how often the other one is taken, less 1, or 0 for never; and which that is."""

    shares: npt.NDArray[np.uint16]
    others: npt.NDArray[np.uint16]

    @classmethod
    def plain(cls, count: int) -> Shape:
        """Of slots that stand for their own endpoints alone."""
        return cls(np.zeros(count, np.uint16), np.zeros(count, np.uint16))

    def same_as(self, other: Shape) -> bool:
        """Whether nothing differs."""
        return np.array_equal(self.shares, other.shares) and np.array_equal(
            self.others, other.others
        )


def likelihood(shape: Shape) -> npt.NDArray[np.float64]:
    """By slot, how likely its own endpoint is when one of these slots is drawn; `others` are
    numbers of slots among these."""
    count = len(shape.shares)
    away = np.where(shape.shares > 0, (shape.shares.astype(np.float64) + 1) / ONE, 0.0)
    found: npt.NDArray[np.float64] = (1 - away) + np.bincount(shape.others, away, count)
    found /= max(count, 1)
    return found
