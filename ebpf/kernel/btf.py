"""The running kernel's own type information (BTF), by libbpf: ids by name, members by place."""

from __future__ import annotations

import ctypes
from typing import Self

from ebpf.errors import MissingFeature
from ebpf.kernel import libbpf

STRUCT, UNION, FUNC = 4, 5, 12

_Words = ctypes.c_uint32 * 3


class KernelTypes:
    """A context manager: the information takes some megabytes until it is let go.

    Raises MissingFeature for a kernel built without (CONFIG_DEBUG_INFO_BTF).
    """

    def __init__(self) -> None:
        lib = self._lib = libbpf.library()
        pointer, number = ctypes.c_void_p, ctypes.c_uint32
        lib.btf__load_vmlinux_btf.restype = pointer
        lib.btf__find_by_name_kind.argtypes = [pointer, ctypes.c_char_p, number]
        lib.btf__type_by_id.restype = pointer
        lib.btf__type_by_id.argtypes = [pointer, number]
        lib.btf__name_by_offset.restype = ctypes.c_char_p
        lib.btf__name_by_offset.argtypes = [pointer, number]
        lib.btf__free.argtypes = [pointer]
        self._btf: int | None = lib.btf__load_vmlinux_btf()
        if not self._btf:
            raise MissingFeature("this kernel has no type information (/sys/kernel/btf/vmlinux)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.btf__free(self._btf)
        self._btf = None

    def find(self, name: str, kind: int) -> int:
        """The id of a type or function; 0 if there is none."""
        return max(0, int(self._lib.btf__find_by_name_kind(self._btf, name.encode(), kind)))

    def member(self, owner: int, name: str) -> tuple[int, int] | None:
        """First bit and number of bits (0: no bit field) of a member of a struct, also of one
        within anonymous members; None if there is none."""
        return self._member(owner, name.encode(), 0)

    def _member(self, owner: int, name: bytes, base: int) -> tuple[int, int] | None:
        # struct btf_type, then its members: three words each (linux/btf.h).
        address = self._lib.btf__type_by_id(self._btf, owner)
        _, info, _ = _Words.from_address(address)
        if info >> 24 & 0x1F not in (STRUCT, UNION):
            return None
        fields = info >> 31
        for number in range(info & 0xFFFF):
            label, kind, place = _Words.from_address(address + 12 * (number + 1))
            bits, offset = (place >> 24, place & 0xFFFFFF) if fields else (0, place)
            found = self._lib.btf__name_by_offset(self._btf, label)
            if found == name:
                return base + offset, bits
            if not found and (inner := self._member(kind, name, base + offset)):
                return inner
        return None
