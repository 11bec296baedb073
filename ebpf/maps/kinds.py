"""Maps by kind, and how to open or create one."""

from __future__ import annotations

import os

from ebpf.errors import KernelError, LayoutError
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
from ebpf.maps.arrays import ArrayMap, PerCpuArray, ProgramArray
from ebpf.maps.base import Map
from ebpf.maps.hashes import HashMap
from ebpf.maps.ring import Ring

_CLASSES: dict[int, type[Map]] = {
    HASH: HashMap,
    LRU_HASH: HashMap,
    LPM_TRIE: HashMap,
    ARRAY: ArrayMap,
    PERCPU_ARRAY: PerCpuArray,
    PROG_ARRAY: ProgramArray,
    RINGBUF: Ring,
}


def wrap(spec: MapSpec, fd: int, readonly: bool = False) -> Map:
    """The object for an open map, by its type. Takes the descriptor over, also if it fails."""
    try:
        return _CLASSES.get(spec.type, Map)(spec, fd, readonly)
    except (KernelError, LayoutError):
        os.close(fd)
        raise


def create(spec: MapSpec, max_entries: int) -> Map:
    """A new map, not pinned."""
    fd = libbpf.map_create(
        spec.type, spec.name, spec.key.size, spec.value.size, max_entries, spec.flags
    )
    return wrap(spec, fd)
