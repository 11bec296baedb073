"""Maps by kind, and how to open or create one."""

from __future__ import annotations

import os

from ebpf import libbpf
from ebpf.arrays import ArrayMap, PerCpuArray, ProgramArray, element_dtype, possible_cpus
from ebpf.errors import KernelError, LayoutError
from ebpf.hash_maps import HashMap, Many
from ebpf.layouts import MapSpec
from ebpf.map_base import (
    ARRAY,
    F_MMAPABLE,
    F_NO_PREALLOC,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    PERCPU_ARRAY,
    PROG_ARRAY,
    TYPE_NAMES,
    Map,
    Records,
)

__all__ = [
    "ARRAY",
    "F_MMAPABLE",
    "F_NO_PREALLOC",
    "HASH",
    "LPM_TRIE",
    "LRU_HASH",
    "PERCPU_ARRAY",
    "PROG_ARRAY",
    "TYPE_NAMES",
    "ArrayMap",
    "HashMap",
    "Many",
    "Map",
    "PerCpuArray",
    "ProgramArray",
    "Records",
    "create",
    "element_dtype",
    "possible_cpus",
    "wrap",
]

_CLASSES: dict[int, type[Map]] = {
    HASH: HashMap,
    LRU_HASH: HashMap,
    LPM_TRIE: HashMap,
    ARRAY: ArrayMap,
    PERCPU_ARRAY: PerCpuArray,
    PROG_ARRAY: ProgramArray,
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
