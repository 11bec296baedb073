"""Arrays: memory-mapped ones, per-CPU counters, tail-call slots."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from ebpf.errors import KernelError, LayoutError
from ebpf.kernel import libbpf
from ebpf.layouts import F_MMAPABLE, MapSpec
from ebpf.maps.base import Map, Records, of_kind


class ArrayMap(Map):
    """A memory-mapped array. `records[i]` reads and writes element i without a system call.

    `records` is a structured array (plain for a map of u64), one element per index.
    """

    records: Records

    def __init__(self, spec: MapSpec, fd: int, readonly: bool = False) -> None:
        super().__init__(spec, fd, readonly)
        if not spec.flags & F_MMAPABLE:
            raise LayoutError(f"map {spec.name} cannot be mapped into memory")
        dtype = element_dtype(spec)
        self._stride = dtype.itemsize
        length = -(-self._stride * self.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE
        protection = mmap.PROT_READ if readonly else mmap.PROT_READ | mmap.PROT_WRITE
        try:
            memory = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=protection)
        except OSError as error:
            raise KernelError(f"cannot map {spec.name}", error.errno or 0) from error
        self._words = memoryview(memory).cast("Q")
        self.records = np.frombuffer(memory, dtype, self.max_entries)

    def store_word(self, index: int, field: str, value: int) -> None:
        """One aligned 8-byte store into a u64 field: a reader sees the old value or the new one."""
        offset = self._word_offset(field)
        self._words[(index * self._stride + offset) // 8] = value

    def load_word(self, index: int, field: str) -> int:
        """One aligned 8-byte load."""
        return self._words[(index * self._stride + self._word_offset(field)) // 8]

    def _word_offset(self, field: str) -> int:
        found = self.spec.value.field(field)
        if found.size != 8 or found.offset % 8:
            raise LayoutError(f"{field} of map {self.name} is not an aligned 8-byte word")
        return found.offset

    def close(self) -> None:
        """Closes the descriptor. The mapping goes when the last view of `records` does."""
        self.records = np.empty(0, self.records.dtype)
        self._words = memoryview(b"").cast("Q")
        super().close()


class PerCpuArray(Map):
    """What each CPU keeps for itself; counters, where the value is one u64."""

    def read_sum(self) -> Records:
        """uint64 per index, summed over CPUs. Raises LayoutError if values are no counters."""
        if self.spec.value.size != 8:
            raise LayoutError(f"map {self.name} holds no counters")
        each = [np.frombuffer(self.read(index), np.uint64) for index in range(self.max_entries)]
        sums: Records = np.array(each).sum(axis=1, dtype=np.uint64)
        return sums

    def read(self, index: int) -> bytes:
        """The values of all CPUs at an index, each padded to a multiple of 8 bytes."""
        key, values = ctypes.c_uint32(index), np.zeros(self._bytes(), np.uint8)
        code = libbpf.library().bpf_map_lookup_elem(self.fd, ctypes.byref(key), values.ctypes.data)
        if code < 0:
            raise self.failed("cannot read", -code)
        return values.tobytes()

    def clear(self) -> None:
        """Zeroes every value of every CPU."""
        zeroes = np.zeros(self._bytes(), np.uint8)
        for index in range(self.max_entries):
            key, what = ctypes.c_uint32(index), f"index {index} of map {self.name}"
            libbpf.map_update(self.fd, ctypes.byref(key), zeroes.ctypes.data, what)

    def _bytes(self) -> int:
        return possible_cpus() * -(-self.spec.value.size // 8) * 8


class ProgramArray(Map):
    """Tail-call slots."""

    def program(self, index: int) -> int:
        """The kernel's number of the program in a slot, 0 if it is empty."""
        key, value = ctypes.c_uint32(index), ctypes.c_uint32()
        code = libbpf.library().bpf_map_lookup_elem(self.fd, ctypes.byref(key), ctypes.byref(value))
        if code == -errno.ENOENT:
            return 0
        if code < 0:
            raise self.failed("cannot read", -code)
        return value.value

    def store(self, index: int, prog_fd: int) -> None:
        """Puts a program into a slot."""
        key, value = ctypes.c_uint32(index), ctypes.c_uint32(prog_fd)
        libbpf.map_update(
            self.fd, ctypes.byref(key), ctypes.byref(value), f"slot {index} of map {self.name}"
        )


def array_of(maps: Mapping[str, Map], name: str) -> ArrayMap:
    """One of several maps, which is an array."""
    return of_kind(ArrayMap, maps[name])


def element_dtype(spec: MapSpec) -> np.dtype[Any]:
    """The dtype of an array map's elements in memory: the kernel rounds their size up to 8."""
    dtype = spec.value.dtype
    stride = -(-spec.value.size // 8) * 8
    if stride == dtype.itemsize:
        return dtype
    if dtype.names is None:
        return np.dtype(
            {"names": ["value"], "formats": [dtype], "offsets": [0], "itemsize": stride}
        )
    fields = cast("dict[str, tuple[Any, int]]", dict(dtype.fields or {}))
    return np.dtype(
        {
            "names": list(dtype.names),
            "formats": [fields[name][0] for name in dtype.names],
            "offsets": [fields[name][1] for name in dtype.names],
            "itemsize": stride,
        }
    )


@functools.cache
def possible_cpus() -> int:
    """How many CPUs a per-CPU value has room for."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split("[-,]", text)[-1]) + 1
