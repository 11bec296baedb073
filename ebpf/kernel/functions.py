"""Tells the kernel what a program's functions take, so that it verifies each by itself.

Without that the verifier follows every call into the function, on every way that leads there. A
function takes one record, of which the kernel wants to know the size, and returns a number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ebpf.kernel import libbpf
from ebpf.layouts import Function

_MAGIC, _VERSION = 0xEB9F, 1
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, its length, types, strings
_TYPE = struct.Struct("=III")  # name, kind and details, size or type
_INT, _PTR, _STRUCT, _FUNC, _FUNC_PROTO = 1, 2, 4, 12, 13
_GLOBAL = 1  # linkage
_INFO = struct.Struct("=II")  # struct bpf_func_info: instruction, type


class _Types:
    """Type information as it is put together."""

    def __init__(self) -> None:
        self._types: list[bytes] = []
        self._strings = bytearray(1)

    def name(self, text: str) -> int:
        """Where a name is."""
        if not text:
            return 0
        at = len(self._strings)
        self._strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, last: int, name: str = "", details: int = 0, more: bytes = b"") -> int:
        """Returns the new type's number."""
        self._types.append(_TYPE.pack(self.name(name), kind << 24 | details, last) + more)
        return len(self._types)

    def packed(self) -> bytes:
        types, strings = b"".join(self._types), bytes(self._strings)
        head = (_MAGIC, _VERSION, 0, _HEADER.size, 0, len(types), len(types), len(strings))
        return _HEADER.pack(*head) + types + strings


def describe(program: str, functions: Iterable[Function]) -> tuple[bytes, bytes]:
    """BTF, and an array of struct bpf_func_info: the program itself first."""
    made = _Types()
    number = made.add(_INT, 8, "u64", more=struct.pack("=I", 64))

    def function(name: str, argument: int) -> int:
        parameter = struct.pack("=II", made.name("argument"), argument)
        prototype = made.add(_FUNC_PROTO, number, details=1, more=parameter)
        return made.add(_FUNC, prototype, name, details=_GLOBAL)

    infos = [_INFO.pack(0, function(program, number))]
    for found in functions:
        record = made.add(_STRUCT, found.size, f"{found.name}_record")
        infos.append(_INFO.pack(found.at, function(found.name, made.add(_PTR, record))))
    return made.packed(), b"".join(infos)


def load_types(program: str, functions: Iterable[Function]) -> tuple[int, bytes]:
    """A descriptor of the kernel's copy, to close once the program is loaded; and the infos."""
    types, infos = describe(program, functions)
    return libbpf.btf_load(types, program), infos
