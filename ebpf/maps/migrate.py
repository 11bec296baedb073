"""Carrying a map's contents into a map of another layout or size, field by field by name.

Ids are indices, so arrays are copied index by index: flows that name a backend stay right. Programs
go on with the old map until they are replaced too, so it stays pinned as old/NAME-ID till then.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ebpf import maps
from ebpf.errors import LayoutError
from ebpf.kernel import bpffs, libbpf
from ebpf.layouts import MapSpec
from ebpf.maps import ArrayMap, HashMap, Map, PerCpuArray, Records, declared, former
from ebpf.maps.buckets import BucketTable
from ebpf.maps.meta import Meta


class Replaced:
    """The maps of one instance whose place others took."""

    def __init__(self, pin_dir: Path, notes: Meta) -> None:
        self._directory = pin_dir / "old"
        self._notes = notes
        # By the old map's id, what it held when that was copied: keys, or elements of an array.
        self._copied: dict[int, Records] = {}

    def replace(self, old: Map, spec: MapSpec, entries: int, path: Path) -> Map:
        """A map like `spec`, not smaller than `old`, with what that holds; not pinned.

        `old`, pinned at `path`, is closed and gets its second pin.
        """
        new = maps.create(spec, max(entries, old.max_entries))
        self.take_over(old, new, path)
        old.close()
        return new

    def take_over(self, old: Map, new: Map, path: Path) -> None:
        """Copies what `old` holds into `new`; `old`, pinned at `path`, gets its second pin."""
        if isinstance(old, HashMap) and _filled(new.name):
            self._copied[old.id] = old.read_all()[0]
        if isinstance(old, ArrayMap) and _counted(new.name):
            self._copied[old.id] = old.records.copy()
        copy(old, new)
        os.makedirs(self._directory, exist_ok=True)
        kept = self._directory / f"{new.name}-{old.id}"
        if not kept.exists():
            os.link(path, kept)

    def finish(self, current: Mapping[str, Map]) -> int:
        """Lets the old maps go, once no program uses them. What programs still put into them comes
        into the `current` ones, by name; returns how many entries those were."""
        carried = 0
        for path in sorted(self._directory.iterdir()) if self._directory.is_dir() else []:
            name = path.name.rsplit("-", 1)[0]
            fd = libbpf.obj_get(str(path))
            old = maps.wrap(self._notes.spec_of(name, fd), fd)
            try:
                if _filled(name) and name in current:
                    carried += self._carry_later(old, current[name])
                elif _counted(name) and name in current:
                    self._count_later(old, current[name])
            finally:
                old.close()
            path.unlink()
        bpffs.remove_tree(self._directory)
        return carried

    def _count_later(self, old: Map, new: Map) -> None:
        """Adds what was added since the copy; what was before, if another process copied, cannot be
        told apart and is left out."""
        before = self._copied.pop(old.id, None)
        if before is not None and isinstance(old, ArrayMap) and isinstance(new, ArrayMap):
            add_later(before, old.records, new.records)

    def _carry_later(self, old: Map, new: Map) -> int:
        if not isinstance(old, HashMap) or not isinstance(new, HashMap):
            raise LayoutError(f"map {old.name} was a {old.type} and is a {new.type}")
        return copy_later(old, new, self._copied.pop(old.id, None))


def suits(old: Map, spec: MapSpec, entries: int, chosen: bool) -> bool:
    """Whether `old` can stay: of this layout, and of this size or larger. Where sizes were not
    `chosen`, one that follows a limit may keep a smaller size."""
    use = declared.USES.get(spec.name)
    # A table of flows has the size that it has grown to.
    of_flows = use is not None and isinstance(use.size, declared.Buckets)
    nobody_cares = of_flows or (not chosen and declared.limit_of(spec.name) is not None)
    return old.spec == spec and (old.max_entries >= entries or nobody_cares)


def _filled(name: str) -> bool:
    """Whether programs put entries into the map, which are then nowhere else."""
    use = declared.USES.get(name)
    return use is not None and use.filled


def _counted(name: str) -> bool:
    """Whether programs add to numbers in the map."""
    use = declared.USES.get(name)
    return use is not None and use.counted


def convert(entries: Records, dtype: np.dtype[Any]) -> Records:
    """`entries` in another dtype: fields of the same name are carried over, the others are zero.

    A plain integer or a text or array of another length is copied as far as it fits; a number that
    does not fit its new field raises LayoutError.
    """
    out = np.zeros(len(entries), dtype)
    _carry(entries, out, "")
    return out


def _carry(old: Records, new: Records, where: str) -> None:
    if old.dtype == new.dtype and old.shape == new.shape:
        new[...] = old
    elif old.dtype.names is not None and new.dtype.names is not None:
        for name in new.dtype.names:
            if name in old.dtype.names:
                _carry(old[name], new[name], f"{where}.{name}")
    elif old.dtype.names is not None or new.dtype.names is not None:
        raise LayoutError(f"field {where[1:]} was a struct and is none, or the reverse")
    elif old.ndim > 1 and new.ndim == old.ndim and old.shape != new.shape:
        length = min(old.shape[1], new.shape[1])
        _carry(old[:, :length], new[:, :length], where)
    elif old.ndim != new.ndim:
        raise LayoutError(f"field {where[1:]} was an array and is none, or the reverse")
    else:
        new[...] = old
        if old.dtype.kind in "ui" and not np.array_equal(new, old):
            raise LayoutError(f"field {where[1:]} has values that its new type cannot hold")


def copy(old: Map, new: Map) -> int:
    """Copies all that `old` holds; returns how many entries were written.

    A hash with more entries than `new` has room for raises KernelError. A table in buckets is
    filled anew, since a key's place depends on how many buckets there are.
    """
    if isinstance(new, ArrayMap) and isinstance(declared.use_of(new.spec).size, declared.Table):
        return _fill_table(old, BucketTable(new))
    if isinstance(old, HashMap) and isinstance(new, HashMap):
        written = 0
        for keys, values in old.batches():
            written += new.put_many(
                convert(keys, new.spec.key.dtype), convert(values, new.spec.value.dtype)
            )
        return written
    if isinstance(old, ArrayMap) and isinstance(new, ArrayMap):
        count = min(old.max_entries, new.max_entries)
        new.records[:count] = convert(old.records[:count], new.records.dtype)
        return count
    if isinstance(old, PerCpuArray) and isinstance(new, PerCpuArray):
        # What else CPUs keep for themselves is of the moment.
        return _copy_sums(old, new) if old.spec.value.size == new.spec.value.size == 8 else 0
    raise LayoutError(f"map {old.name} was a {old.type} and is a {new.type}")


def _fill_table(old: Map, new: BucketTable) -> int:
    if isinstance(old, ArrayMap):
        keys, payloads = BucketTable(old).read()
    elif isinstance(old, HashMap):
        keys, payloads = former.frontends(old)
    else:
        raise LayoutError(f"map {old.name} was a {old.type} and is a table in an array")
    new.put(keys, payloads)
    return len(keys)


def copy_later(old: HashMap, new: HashMap, known: Records | None) -> int:
    """Copies the entries made since the copy that saw the `known` keys; returns how many.

    What `new` has already stays. Entries that were copied and are gone from `new` by now ended
    there, and do not come back; without `known` (another process copied) they cannot be told.
    """
    written = 0
    for keys, values in old.batches():
        if known is not None:
            # As byte strings of one length, which numpy can sort and compare.
            raw = f"S{keys.dtype.itemsize}"
            fresh = ~np.isin(keys.view(raw), known.view(raw))
            keys, values = keys[fresh], values[fresh]
        written += new.put_many(
            convert(keys, new.spec.key.dtype), convert(values, new.spec.value.dtype), True
        )
    return written


def add_later(before: Records, after: Records, new: Records) -> None:
    """Adds to `new` what elements of the old map have grown by. The programs add to the same by
    atomic instructions, which Python has not: only what did change is touched."""
    count = min(len(before), len(new))
    grown = np.flatnonzero(before[:count] != after[:count])
    was, now = (convert(part[grown], new.dtype) for part in (before, after))
    for name in new.dtype.names or ("",):
        column = new[name] if name else new
        column[grown] += (now[name] - was[name]) if name else now - was


def _copy_sums(old: PerCpuArray, new: PerCpuArray) -> int:
    """Counters keep their sums: the first CPU's share takes them."""
    sums = old.read_sum()[: new.max_entries]
    values = np.zeros(maps.possible_cpus(), np.uint64)
    for index, total in enumerate(sums):
        values[0] = total
        key = ctypes.c_uint32(index)
        libbpf.map_update(new.fd, ctypes.byref(key), values.ctypes.data, f"counters of {new.name}")
    return len(sums)
