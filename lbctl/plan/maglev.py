"""Tables from hashes to endpoints that every node makes alike, and that change little when one of
the endpoints comes or goes.

What Maglev (Eisenbud and others, NSDI 2016) is for, filled another way, which moves fewer of the
others: places lie on a ring of the endpoints' points, and an endpoint with too many of them passes
some on to the next on the ring (consistent hashing with bounded loads; Mirrokni, Thorup,
Zadimoghaddam). Which it passes on goes by a hash of both, so that nothing depends on order or on
what was before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

PLACES_EACH = 100  # of an endpoint, at least, but in the largest table
LEAST: Final = 1 << 10
_MOST: Final = 1 << 18
_GROWTH = 4
_POINTS = 200  # on the ring, of an endpoint whose weight is a unit
_MOST_POINTS = 100 * _POINTS
_SPARE = 1 / 16  # that an endpoint may have beyond its part


def size_for(endpoints: int) -> int:
    """Places of the table for so many endpoints. It goes by steps: at one, most places change."""
    size = LEAST
    while size < _MOST and size < endpoints * PLACES_EACH:
        size *= _GROWTH
    return size


def table(identities: Sequence[bytes], weights: Sequence[int], size: int) -> Numbers:
    """By place, the index of its endpoint. One of weight 0 has none; not all may be such."""
    seeds = np.array([_seed(identity) for identity in identities], np.uint64)
    parts = np.array(weights, np.float64) / sum(weights)
    points, owners = _ring(seeds, np.array(weights, np.float64))
    most = np.ceil(size * parts * (1 + _SPARE)).astype(np.int64)
    at = np.searchsorted(points, _mixed(np.arange(size, dtype=np.uint64))) % len(points)
    chosen = owners[at]
    while True:
        passed = _beyond(chosen, most, seeds)
        if not len(passed):
            return chosen
        at[passed] = (at[passed] + 1) % len(points)
        chosen[passed] = owners[at[passed]]


def _ring(seeds: Hashes, weights: npt.NDArray[np.float64]) -> tuple[Hashes, Numbers]:
    """Points in order, and whose they are: as many as an endpoint's weight asks for, in a unit that
    stays the same when one of the weights changes."""
    unit = 2.0 ** np.floor(np.log2(np.median(weights[weights > 0])))
    counts = np.ceil(weights / unit * _POINTS).astype(np.int64)
    counts = np.minimum(counts, _MOST_POINTS)
    owners = np.repeat(np.arange(len(seeds)), counts)
    numbers = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    points = _mixed(seeds[owners] + _mixed(numbers.astype(np.uint64) + np.uint64(1)))
    # Points that are equal by chance: the order of seeds is that of every node.
    order = np.lexsort((seeds[owners], points))
    return points[order], owners[order]


def _beyond(chosen: Numbers, most: Numbers, seeds: Hashes) -> Numbers:
    """Places that their endpoints have too many of: those of the highest hashes."""
    full = np.bincount(chosen, minlength=len(most)) > most
    places = np.flatnonzero(full[chosen])
    owners = chosen[places]
    hashes = _mixed(seeds[owners] ^ _mixed(places.astype(np.uint64) ^ np.uint64(1 << 32)))
    order = np.lexsort((hashes, owners))
    places, owners = places[order], owners[order]
    ranks = np.arange(len(owners)) - np.searchsorted(owners, owners)
    found: Numbers = places[ranks >= most[owners]]
    return found


def _seed(identity: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little")


def _mixed(numbers: Hashes) -> Hashes:
    """Each number's bits in disorder (the finaliser of MurmurHash3)."""
    found: Hashes = numbers ^ numbers >> np.uint64(33)
    found = found * np.uint64(0xFF51AFD7ED558CCD)
    found ^= found >> np.uint64(33)
    found = found * np.uint64(0xC4CEB9FE1A85EC53)
    found ^= found >> np.uint64(33)
    return found
