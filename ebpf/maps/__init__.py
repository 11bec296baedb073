"""Maps: their kinds, how they are read and written, and what is kept of them."""

from ebpf.layouts import (
    ARRAY,
    F_MMAPABLE,
    F_NO_PREALLOC,
    HASH,
    LPM_TRIE,
    LRU_HASH,
    PERCPU_ARRAY,
    PROG_ARRAY,
)
from ebpf.maps.arrays import (
    ArrayMap,
    PerCpuArray,
    ProgramArray,
    array_of,
    element_dtype,
    possible_cpus,
)
from ebpf.maps.base import TYPE_NAMES, Map, Records, of_kind
from ebpf.maps.hashes import HashMap, Many
from ebpf.maps.kinds import create, wrap

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
    "array_of",
    "create",
    "element_dtype",
    "of_kind",
    "possible_cpus",
    "wrap",
]
