"""A ring of records that programs write and one process reads, without a system call."""

from __future__ import annotations

import mmap
import struct
from typing import Any

import numpy as np

from ebpf.errors import KernelError
from ebpf.layouts import MapSpec
from ebpf.maps.base import Map, Records

# Of a record's first four bytes, the length: it is being written, or was given up.
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER = 8


class Ring(Map):
    """One reader at a time. What nobody reads in time is not there: programs find no room then."""

    def __init__(self, spec: MapSpec, fd: int, readonly: bool = False) -> None:
        super().__init__(spec, fd, readonly)
        self._size = self.max_entries
        self._consumer: mmap.mmap | None = None
        self._producer: mmap.mmap | None = None

    def read(self) -> list[bytes]:
        """All records that are complete now; they are taken out."""
        self._map()
        assert self._producer is not None
        at, end = self._positions()
        found = []
        while at < end:
            # The data is mapped twice in a row: a record never breaks off.
            begin = mmap.PAGESIZE + at % self._size
            (length,) = struct.unpack_from("=I", self._producer, begin)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._producer[begin + _HEADER : begin + _HEADER + size])
            at += -(-(size + _HEADER) // 8) * 8
        self._take(at)
        return found

    def read_records(self, dtype: np.dtype[Any]) -> Records:
        """The same where all records are of one size, which with its header divides the ring's:
        without a step for each."""
        self._map()
        assert self._producer is not None
        stride = _HEADER + -(-dtype.itemsize // 8) * 8
        assert self._size % stride == 0, "a record never breaks off"
        at, end = self._positions()
        slots = np.frombuffer(self._producer, np.uint8, self._size, mmap.PAGESIZE)
        rows = slots.reshape(-1, stride)
        places = np.arange(at // stride, end // stride) % len(rows)
        # All lengths before any content: what is complete by then has been written.
        lengths = np.ascontiguousarray(rows[places, :4]).view(np.uint32)[:, 0]
        busy = np.flatnonzero(lengths & _BUSY)
        whole = int(busy[0]) if len(busy) else len(places)
        kept = places[:whole][lengths[:whole] & _DISCARDED == 0]
        content = rows[kept, _HEADER : _HEADER + dtype.itemsize]
        self._take(at + whole * stride)
        return np.ascontiguousarray(content).view(dtype)[:, 0]

    def _positions(self) -> tuple[int, int]:
        assert self._consumer is not None
        assert self._producer is not None
        (at,) = struct.unpack_from("=Q", self._consumer, 0)
        (end,) = struct.unpack_from("=Q", self._producer, 0)
        return at, end

    def _take(self, at: int) -> None:
        """One aligned store, after all before that were copied."""
        assert self._consumer is not None
        memoryview(self._consumer).cast("Q")[0] = at

    def _map(self) -> None:
        if self._consumer is not None:
            return
        page = mmap.PAGESIZE
        try:
            self._consumer = mmap.mmap(self.fd, page)
            self._producer = mmap.mmap(
                self.fd, page + 2 * self._size, prot=mmap.PROT_READ, offset=page
            )
        except OSError as error:
            raise KernelError(f"cannot map {self.name}", error.errno or 0) from error

    def close(self) -> None:
        """Closes the descriptor and the mappings."""
        for memory in (self._consumer, self._producer):
            if memory is not None:
                memory.close()
        self._consumer = self._producer = None
        super().close()
