"""The filter's hash against a plain reading of the C, one number at a time."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lbctl.datapath import consts, filters

_MASK = (1 << 32) - 1


def _plain(address: bytes, port: int) -> int:
    factors = (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x9E3779B1)
    words: tuple[int, ...] = struct.unpack("=4I", address)
    h = sum(w * f for w, f in zip(words, factors, strict=True)) + port * 0x165667B1 & _MASK
    h ^= h >> 15
    return h * 0x2C1B3C6D & _MASK


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 65535))))
def test_bits_are_those_of_the_c(endpoints: list[tuple[bytes, int]]) -> None:
    addresses = np.frombuffer(b"".join(a for a, _ in endpoints), np.uint8).reshape(-1, 16)
    ports = np.array([p for _, p in endpoints], np.uint16)
    shift = 32 - consts.SERVICE_FILTER_BITS
    assert filters.address_bits(addresses).tolist() == [_plain(a, 0) >> shift for a, _ in endpoints]
    shift = 32 - consts.BACKEND_FILTER_BITS
    assert filters.endpoint_bits(addresses, ports).tolist() == [
        _plain(a, p) >> shift for a, p in endpoints
    ]


def test_every_bit_is_inside_the_filter() -> None:
    rows = np.random.default_rng(1).integers(0, 256, (1000, 16), np.uint8)
    bits = filters.endpoint_bits(rows, np.arange(1000, dtype=np.uint16))
    assert bits.max() < 1 << consts.BACKEND_FILTER_BITS
    assert len(set(bits.tolist())) > 990, "a thousand endpoints have about a thousand bits"
