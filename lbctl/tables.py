"""The maps as the control plane uses them: the part of `ebpf.maps` that it needs, as protocols.

Tests put tables of their own behind the same names.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ebpf.layouts import MapSpec

Records = np.ndarray[Any, np.dtype[Any]]


class HashTable(Protocol):
    """A hash map; keys and values as bytes, or many as structured arrays."""

    name: str
    spec: MapSpec
    max_entries: int

    def get(self, key: bytes) -> bytes | None: ...
    def delete(self, key: bytes) -> bool: ...
    def read_all(self) -> tuple[Records, Records]: ...
    def batches(self) -> Iterator[tuple[Records, Records]]: ...
    def put_many(self, keys: Records, values: Records) -> int: ...
    def delete_many(self, keys: Records | Sequence[bytes]) -> int: ...


class ArrayTable(Protocol):
    """A memory-mapped array: reading and writing `records` is loading and storing."""

    name: str
    max_entries: int
    records: Records

    def store_word(self, index: int, field: str, value: int) -> None: ...


class Tables(Protocol):
    """The maps that the control plane writes and reads."""

    @property
    def frontends(self) -> HashTable: ...
    @property
    def names(self) -> HashTable: ...
    @property
    def services(self) -> ArrayTable: ...
    @property
    def slots(self) -> ArrayTable: ...
    @property
    def backends(self) -> ArrayTable: ...
    @property
    def service_filter(self) -> ArrayTable: ...
    @property
    def backend_filter(self) -> ArrayTable: ...
    @property
    def service_counters(self) -> ArrayTable: ...
    @property
    def config(self) -> ArrayTable: ...
    @property
    def table_state(self) -> ArrayTable: ...
    @property
    def flows4(self) -> HashTable: ...
    @property
    def flows4_lru(self) -> HashTable: ...
    @property
    def flows6(self) -> HashTable: ...
    @property
    def flows6_lru(self) -> HashTable: ...
