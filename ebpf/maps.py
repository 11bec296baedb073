"""Maps by kind: hash tables with batches, memory-mapped arrays, per-CPU counters."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ebpf import libbpf
from ebpf.errors import KernelError, LayoutError
from ebpf.layouts import MapSpec
from ebpf.sizes import LIMITS

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

_NOEXIST = 1
_ENOTSUPP = 524  # the kernel's own, without a name outside of it
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP)
_BATCH = 16384

# Structured arrays of a record's dtype.
Records = np.ndarray[Any, np.dtype[Any]]
Many = Records | Sequence[bytes]


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

    def _failed(self, what: str, code: int) -> KernelError:
        """The error for a failed update; a full map says how to get a larger one."""
        if code == errno.E2BIG:
            limit = LIMITS.get(self.name)
            return KernelError(
                f"map {self.name} is full: it has {self.max_entries} entries",
                code,
                f"Start the agent with a larger --max-{limit}." if limit else "",
            )
        if code == errno.EPERM and self.readonly:
            return KernelError(f"{what} map {self.name}, which was opened for reading", code)
        return KernelError(f"{what} map {self.name}", code)


class HashMap(Map):
    """hash, lru_hash and lpm_trie. Keys and values are bytes of their record's size."""

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        self._check(key, self.spec.key.size, "key")
        value = ctypes.create_string_buffer(self.spec.value.size)
        code = libbpf.library().bpf_map_lookup_elem(self.fd, key, value)
        if code == -errno.ENOENT:
            return None
        if code < 0:
            raise self._failed("cannot read", -code)
        return value.raw

    def put(self, key: bytes, value: bytes, create_only: bool = False) -> bool:
        """Writes an entry; with `create_only` returns False and changes nothing if it exists."""
        self._check(key, self.spec.key.size, "key")
        self._check(value, self.spec.value.size, "value")
        flags = _NOEXIST if create_only else 0
        code = libbpf.library().bpf_map_update_elem(self.fd, key, value, flags)
        if code == -errno.EEXIST and create_only:
            return False
        if code < 0:
            raise self._failed("cannot write", -code)
        return True

    def delete(self, key: bytes) -> bool:
        """False if there was no such entry."""
        self._check(key, self.spec.key.size, "key")
        code = libbpf.library().bpf_map_delete_elem(self.fd, key)
        if code == -errno.ENOENT:
            return False
        if code < 0:
            raise self._failed("cannot delete from", -code)
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries one by one; those that come or go meanwhile may be missed or seen."""
        for keys, values in self._batches():
            for key, value in zip(keys, values, strict=True):
                yield key.tobytes(), value.tobytes()

    def read_all(self) -> tuple[Records, Records]:
        """All entries as two structured arrays of the records' dtypes, in the same order."""
        parts = [(keys.copy(), values.copy()) for keys, values in self._batches()]
        if not parts:
            return np.empty(0, self.spec.key.dtype), np.empty(0, self.spec.value.dtype)
        return np.concatenate([k for k, _ in parts]), np.concatenate([v for _, v in parts])

    def put_many(self, keys: Many, values: Many, create_only: bool = False) -> int:
        """Writes entries in order; returns how many (with `create_only`, those that were new).

        On an error, such as a full map, the entries before it are written.
        """
        raw_keys = self._raw(keys, self.spec.key.size, self.spec.key.dtype)
        raw_values = self._raw(values, self.spec.value.size, self.spec.value.dtype)
        if len(raw_keys) // self.spec.key.size != len(raw_values) // self.spec.value.size:
            raise LayoutError(f"map {self.name}: as many keys as values are needed")
        options = libbpf.batch_options(_NOEXIST if create_only else 0)
        call = functools.partial(self._update_batch, raw_keys, raw_values, ctypes.byref(options))
        skip = errno.EEXIST if create_only else 0
        done = self._many(len(raw_keys) // self.spec.key.size, call, skip, "cannot write")
        if done is not None:
            return done
        written = 0
        for key, value in zip(
            _pieces(raw_keys, self.spec.key.size),
            _pieces(raw_values, self.spec.value.size),
            strict=True,
        ):
            written += self.put(key, value, create_only)
        return written

    def delete_many(self, keys: Many) -> int:
        """Deletes entries; returns how many existed."""
        raw = self._raw(keys, self.spec.key.size, self.spec.key.dtype)
        options = libbpf.batch_options()
        call = functools.partial(self._delete_batch, raw, ctypes.byref(options))
        done = self._many(len(raw) // self.spec.key.size, call, errno.ENOENT, "cannot delete from")
        if done is not None:
            return done
        return sum(self.delete(key) for key in _pieces(raw, self.spec.key.size))

    def _update_batch(
        self, keys: bytes, values: bytes, options: Any, index: int, count: Any
    ) -> int:
        result: int = libbpf.library().bpf_map_update_batch(
            self.fd,
            _at(keys, index * self.spec.key.size),
            _at(values, index * self.spec.value.size),
            count,
            options,
        )
        return result

    def _delete_batch(self, keys: bytes, options: Any, index: int, count: Any) -> int:
        result: int = libbpf.library().bpf_map_delete_batch(
            self.fd, _at(keys, index * self.spec.key.size), count, options
        )
        return result

    def _many(self, total: int, call: Any, skip: int, what: str) -> int | None:
        """Runs a batch call over `total` entries, stepping over those that fail with `skip`.

        None: this kernel has no such batch for this map, and nothing was done.
        """
        index = done = 0
        while index < total:
            count = ctypes.c_uint32(min(_BATCH, total - index))
            code = call(index, ctypes.byref(count))
            if code == 0:
                done += count.value
                index += count.value
            elif -code in _NO_BATCH and index == 0 and count.value in (0, min(_BATCH, total)):
                return None
            else:
                done += count.value
                index += count.value
                if -code != skip:
                    raise self._failed(what, -code)
                index += 1
        return done

    def _batches(self) -> Iterator[tuple[Records, Records]]:
        """Entries in arrays that are reused from one step to the next."""
        capacity = _BATCH
        token = ctypes.create_string_buffer(max(8, self.spec.key.size))
        options = libbpf.batch_options()
        first = True
        while True:
            keys = np.empty(capacity, self.spec.key.dtype)
            values = np.empty(capacity, self.spec.value.dtype)
            count = ctypes.c_uint32(capacity)
            code = libbpf.library().bpf_map_lookup_batch(
                self.fd,
                None if first else token,
                token,
                keys.ctypes.data,
                values.ctypes.data,
                ctypes.byref(count),
                ctypes.byref(options),
            )
            if code == -errno.ENOSPC:
                capacity *= 2  # one bucket alone has more entries than fit
                continue
            if -code in _NO_BATCH and first:
                yield from self._one_by_one()
                return
            if code < 0 and code != -errno.ENOENT:
                raise self._failed("cannot read", -code)
            if count.value:
                yield keys[: count.value], values[: count.value]
            if code == -errno.ENOENT:
                return
            first = False

    def _one_by_one(self) -> Iterator[tuple[Records, Records]]:
        key = ctypes.create_string_buffer(self.spec.key.size)
        previous = None
        while True:
            code = libbpf.library().bpf_map_get_next_key(self.fd, previous, key)
            if code == -errno.ENOENT:
                return
            if code < 0:
                raise self._failed("cannot read", -code)
            previous = key
            if (value := self.get(key.raw)) is not None:
                yield (
                    np.frombuffer(key.raw, self.spec.key.dtype),
                    np.frombuffer(value, self.spec.value.dtype),
                )

    def _check(self, data: bytes, size: int, what: str) -> None:
        if len(data) != size:
            raise LayoutError(f"map {self.name}: a {what} has {size} bytes, not {len(data)}")

    def _raw(self, many: Many, size: int, dtype: np.dtype[Any]) -> bytes:
        if isinstance(many, np.ndarray):
            if many.dtype.itemsize != size:
                raise LayoutError(f"map {self.name}: entries have {size} bytes, not those of dtype")
            return np.ascontiguousarray(many).tobytes()
        for piece in many:
            self._check(piece, size, "key or value")
        return b"".join(many)


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
                raise self._failed("cannot read", -code)
            sums[index] = buffer.sum()
        return sums


class ProgramArray(Map):
    """Tail-call slots."""

    def store(self, index: int, prog_fd: int) -> None:
        """Puts a program into a slot."""
        key, value = ctypes.c_uint32(index), ctypes.c_uint32(prog_fd)
        code = libbpf.library().bpf_map_update_elem(
            self.fd, ctypes.byref(key), ctypes.byref(value), 0
        )
        if code < 0:
            raise self._failed("cannot write", -code)


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


@functools.cache
def possible_cpus() -> int:
    """How many CPUs a per-CPU value has room for."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(re.split("[-,]", text)[-1]) + 1


def _at(data: bytes, offset: int) -> Any:
    """A pointer into bytes that the callee only reads."""
    base = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return ctypes.c_void_p(base + offset)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
