"""The table of flows of one family, for Python: its memory, and the programs that change it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np

from ebpf.maps import ArrayMap, Map

FAMILIES = ("4", "6")


def prepare(maps: Mapping[str, Map], enums: Mapping[str, int]) -> None:
    """Makes new tables usable: secrets of their own, and how large they are. What is there stays;
    done before a program looks."""
    for family in FAMILIES:
        if f"table{family}a" not in maps:
            continue
        tables = [_array(maps, f"table{family}{bank}").records for bank in "ab"]
        if not tables[0]["secret"][0].any():
            tables[0]["secret"][0] = _numbers(len(tables[0]["secret"][0]))
            tables[0]["buckets"][0] = _array(maps, f"control{family}a").max_entries
            tables[1]["secret"][0] = tables[0]["secret"][0]
            tables[1]["bank"][0] = enums["PLACE_BANK"]
    if "cpus" not in maps:
        return
    cpus = _array(maps, "cpus").records
    if not cpus["random"].any():
        cpus["random"] = _numbers(len(cpus))


def _numbers(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.frombuffer(secrets.token_bytes(8 * count), np.uint64)


def _array(maps: Mapping[str, Map], name: str) -> ArrayMap:
    found = maps[name]
    assert isinstance(found, ArrayMap)
    return found
