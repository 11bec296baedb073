"""A ring of records that programs write and one process reads, without a system call."""

from __future__ import annotations

import mmap
import struct

from ebpf.errors import KernelError
from ebpf.layouts import MapSpec
from ebpf.maps.base import Map

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
        if self._consumer is None or self._producer is None:
            self._map()
            assert self._consumer is not None
            assert self._producer is not None
        (at,) = struct.unpack_from("=Q", self._consumer, 0)
        (end,) = struct.unpack_from("=Q", self._producer, 0)
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
        # One aligned store, after all of them were copied.
        memoryview(self._consumer).cast("Q")[0] = at
        return found

    def _map(self) -> None:
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
