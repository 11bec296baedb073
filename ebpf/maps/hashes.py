"""Hash tables and tries: single entries, and whole tables in batches."""

from __future__ import annotations

import ctypes
import errno
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ebpf.errors import LayoutError
from ebpf.kernel import libbpf
from ebpf.maps.base import Map, Records

Many = Records | Sequence[bytes]

_NOEXIST = 1
_ENOTSUPP = 524  # the kernel's own, without a name outside of it
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP)
_BATCH = 16384


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
            raise self.failed("cannot read", -code)
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
            raise self.failed("cannot write", -code)
        return True

    def delete(self, key: bytes) -> bool:
        """False if there was no such entry."""
        self._check(key, self.spec.key.size, "key")
        code = libbpf.library().bpf_map_delete_elem(self.fd, key)
        if code == -errno.ENOENT:
            return False
        if code < 0:
            raise self.failed("cannot delete from", -code)
        return True

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries one by one; those that come or go meanwhile may be missed or seen."""
        for keys, values in self.batches():
            for key, value in zip(keys, values, strict=True):
                yield key.tobytes(), value.tobytes()

    def read_all(self) -> tuple[Records, Records]:
        """All entries as two structured arrays of the records' dtypes, in the same order."""
        parts = list(self.batches())
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
                    raise self.failed(what, -code)
                index += 1
        return done

    def batches(self, most: int = _BATCH) -> Iterator[tuple[Records, Records]]:
        """Entries as pairs of structured arrays, so many at a time, or more where one bucket alone
        has more."""
        capacity = most
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
                raise self.failed("cannot read", -code)
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
                raise self.failed("cannot read", -code)
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


def _at(data: bytes, offset: int) -> Any:
    """A pointer into bytes that the callee only reads."""
    base = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
    return ctypes.c_void_p(base + offset)


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
