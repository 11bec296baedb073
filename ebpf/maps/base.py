"""What all maps have in common: the kernel's numbers, a descriptor, and errors that explain."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebpf.errors import KernelError, LayoutError, MapFull
from ebpf.kernel import libbpf
from ebpf.layouts import (
    ARRAY,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    PERCPU_ARRAY,
    PROG_ARRAY,
    RINGBUF,
    MapSpec,
)
from ebpf.maps import declared

TYPE_NAMES = {
    HASH: "hash",
    ARRAY: "array",
    PROG_ARRAY: "prog_array",
    PERCPU_ARRAY: "percpu_array",
    LRU_HASH: "lru_hash",
    LPM_TRIE: "lpm_trie",
    RINGBUF: "ringbuf",
}

# A structured array of a record's dtype, or a plain one for a map of integers.
Records = np.ndarray[Any, np.dtype[Any]]


class Map:
    """One open map. Owns its file descriptor."""

    def __init__(self, spec: MapSpec, fd: int, readonly: bool = False) -> None:
        info = libbpf.map_info(fd)
        self.spec = spec
        self.name = spec.name
        self.fd = fd
        self.readonly = readonly
        self.type = TYPE_NAMES.get(info.type, str(info.type))
        self.max_entries = int(info.max_entries)
        self.id = int(info.id)

    @property
    def memory_bytes(self) -> int:
        """What the kernel accounts to this map."""
        text = Path(f"/proc/self/fdinfo/{self.fd}").read_text()
        found = re.search(r"^memlock:\s+(\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

    def close(self) -> None:
        """Closes the descriptor; the map lives on while pinned or used."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def failed(self, what: str, code: int) -> KernelError:
        """The error for a failed call; that of a full map says which limit it is sized by."""
        if code == errno.E2BIG:
            return MapFull(self.name, self.max_entries, declared.limit_of(self.name) or "")
        if code == errno.EPERM and self.readonly:
            return KernelError(f"{what} map {self.name}, which was opened for reading", code)
        return KernelError(f"{what} map {self.name}", code)


Kind = TypeVar("Kind", bound=Map)


def of_kind(kind: type[Kind], found: Map) -> Kind:
    """A map that is known to be of this kind. Raises LayoutError if it is not."""
    if not isinstance(found, kind):
        raise LayoutError(f"map {found.name} is no {kind.__name__}, but of type {found.type}")
    return found
