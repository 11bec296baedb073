"""What all maps have in common: the kernel's numbers, a descriptor, and errors that explain."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ebpf.errors import KernelError
from ebpf.kernel import libbpf
from ebpf.layouts import MapSpec
from ebpf.maps.sizes import LIMITS

# enum bpf_map_type and flags of the kernel's UAPI.
HASH = 1
ARRAY = 2
PROG_ARRAY = 3
PERCPU_ARRAY = 6
LRU_HASH = 9
LPM_TRIE = 11
F_NO_PREALLOC = 1 << 0
F_MMAPABLE = 1 << 10

TYPE_NAMES = {
    HASH: "hash",
    ARRAY: "array",
    PROG_ARRAY: "prog_array",
    PERCPU_ARRAY: "percpu_array",
    LRU_HASH: "lru_hash",
    LPM_TRIE: "lpm_trie",
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
        """The error for a failed update; a full map says how to get a larger one."""
        if code == errno.E2BIG:
            limit = LIMITS.get(self.name)
            return KernelError(
                f"map {self.name} is full: it has {self.max_entries} entries",
                code,
                f"Start the agent with a larger --{limit}." if limit else "",
                said=True,
            )
        if code == errno.EPERM and self.readonly:
            return KernelError(f"{what} map {self.name}, which was opened for reading", code)
        return KernelError(f"{what} map {self.name}", code)
