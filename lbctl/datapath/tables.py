"""The maps as the control plane uses them: the part of `ebpf.maps` that it needs, as protocols.

Tests put tables of their own behind the same names.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ebpf.flowtable import Rooms
from ebpf.layouts import MapSpec
from ebpf.maps.declared import Maps

Records = np.ndarray[Any, np.dtype[Any]]


class HashTable(Protocol):
    """A hash map; keys and values as bytes, or many as structured arrays."""

    name: str
    spec: MapSpec
    max_entries: int

    def get(self, key: bytes) -> bytes | None: ...
    def delete(self, key: bytes) -> bool: ...
    def read_all(self) -> tuple[Records, Records]: ...
    def batches(self, most: int = ...) -> Iterator[tuple[Records, Records]]: ...
    def put_many(self, keys: Records, values: Records) -> int: ...
    def delete_many(self, keys: Records | Sequence[bytes]) -> int: ...


class ArrayTable(Protocol):
    """A memory-mapped array: reading and writing `records` is loading and storing."""

    name: str
    max_entries: int
    records: Records

    def store_word(self, index: int, field: str, value: int) -> None: ...


class FlowTable(Protocol):
    """The flows of one family, as copies of cells: arrays of `ebpf.flowtable.CELL`."""

    family: str

    def snapshots(self, step: int, least: int, *, tuples: bool = True) -> Iterator[Records]: ...
    def at(self, places: Records, *, tuples: bool = True) -> Records: ...
    def end(self, places: Records, generations: Records, why: int) -> int: ...
    def rooms(self) -> Rooms: ...
    def evicted(self) -> int: ...
    def refused(self) -> int: ...


class Flows(Protocol):
    """What has flow tables, one for each family. They are others when they have grown."""

    @property
    def flow_tables(self) -> Sequence[FlowTable]: ...


class NoFlows:
    """What has none."""

    @property
    def flow_tables(self) -> Sequence[FlowTable]:
        return ()


class PerCpuTable(Protocol):
    """What each CPU counts for itself."""

    name: str

    def read_sum(self) -> Records: ...


# Every map by its name, as `ebpf.maps.declared` has them.
Tables = Maps[HashTable, ArrayTable, PerCpuTable]
