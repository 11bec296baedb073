"""Arrays: memory-mapped ones, per-CPU counters, tail-call slots."""

from __future__ import annotations

import ctypes
import functools
import mmap
import re
from pathlib import Path
from typing import Any, cast

import numpy as np

from ebpf import libbpf
from ebpf.errors import KernelError, LayoutError
from ebpf.layouts import MapSpec
from ebpf.map_base import F_MMAPABLE, Map, Records


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
    """Counters that each CPU keeps for itself."""

    def read_sum(self) -> Records:
        """uint64 per index, summed over CPUs (the value is one u64)."""
        cpus = possible_cpus()
        buffer = np.zeros(cpus, np.uint64)
        sums = np.zeros(self.max_entries, np.uint64)
        key = ctypes.c_uint32()
        for index in range(self.max_entries):
            key.value = index
            code = libbpf.library().bpf_map_lookup_elem(
                self.fd, ctypes.byref(key), buffer.ctypes.data
            )
            if code < 0:
                raise self.failed("cannot read", -code)
            sums[index] = buffer.sum()
        return sums


class ProgramArray(Map):
    """Tail-call slots."""

    def store(self, index: int, prog_fd: int) -> None:
        """Puts a program into a slot."""
        key, value = ctypes.c_uint32(index), ctypes.c_uint32(prog_fd)
        libbpf.map_update(
            self.fd, ctypes.byref(key), ctypes.byref(value), f"slot {index} of map {self.name}"
        )


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
