"""Records, maps and programs as the compiler reported them: plain data that msgspec can store."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

from ebpf.errors import LayoutError

# enum bpf_prog_type of the kernel's UAPI.
SCHED_CLS = 3
XDP = 6
CGROUP_SOCK = 9
CGROUP_SOCK_ADDR = 18

# enum bpf_attach_type: BPF_XDP, and a socket's hooks with the type of program each takes.
XDP_ATTACH = 37
SOCKET_HOOKS = {
    "release": (CGROUP_SOCK, 34),
    "connect4": (CGROUP_SOCK_ADDR, 10),
    "connect6": (CGROUP_SOCK_ADDR, 11),
    "sendmsg4": (CGROUP_SOCK_ADDR, 14),
    "sendmsg6": (CGROUP_SOCK_ADDR, 15),
    "recvmsg4": (CGROUP_SOCK_ADDR, 19),
    "recvmsg6": (CGROUP_SOCK_ADDR, 20),
    "getpeername4": (CGROUP_SOCK_ADDR, 29),
    "getpeername6": (CGROUP_SOCK_ADDR, 30),
}

# enum bpf_map_type, and flags of BPF_MAP_CREATE.
HASH = 1
ARRAY = 2
PROG_ARRAY = 3
PERCPU_ARRAY = 6
LRU_HASH = 9
LPM_TRIE = 11
RINGBUF = 27
F_NO_PREALLOC = 1 << 0
F_MMAPABLE = 1 << 10


class Field(msgspec.Struct, frozen=True):
    """One member of a C struct. `count` is 0 for a single value, else the array's length.

    `kind` is u8 … u64, i8 … i64, char, or struct (then `fields` are its members, by offsets within
    it). `size` covers the whole array.
    """

    name: str
    offset: int
    size: int
    count: int
    kind: str
    fields: tuple[Field, ...] = ()


class Record(msgspec.Struct, frozen=True):
    """The layout of a C struct, or of a plain integer (one field with the empty name)."""

    name: str
    size: int
    fields: tuple[Field, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Exactly as in C: explicit offsets, itemsize = size. A plain integer is a plain dtype."""
        return _dtype(self)

    @property
    def scalar(self) -> bool:
        """True for a plain integer."""
        return len(self.fields) == 1 and not self.fields[0].name

    def field(self, name: str) -> Field:
        """Raises LayoutError for a field this record does not have."""
        for field in self.fields:
            if field.name == name:
                return field
        raise LayoutError(f"struct {self.name} has no field {name}")

    def pack(self, **values: Any) -> bytes:
        """The record's bytes; fields not given are zero.

        A value is an int, or the field's raw bytes (char arrays may be shorter). Raises LayoutError
        for an unknown field or bytes of another length, OverflowError for an int that does not fit.
        """
        out = bytearray(self.size)
        for name, value in values.items():
            field = self.field(name)
            if isinstance(value, bytes | bytearray | memoryview):
                raw = bytes(value)
                if field.kind == "char" and len(raw) < field.size:
                    raw = raw.ljust(field.size, b"\0")
                if len(raw) != field.size:
                    raise LayoutError(
                        f"struct {self.name}: {name} takes {field.size} bytes, not {len(raw)}"
                    )
            elif field.count or field.kind == "struct":
                raise LayoutError(f"struct {self.name}: {name} is given as {field.size} bytes")
            else:
                raw = int(value).to_bytes(field.size, "little", signed=field.kind[0] == "i")
                raw = raw if _LITTLE else raw[::-1]
            out[field.offset : field.offset + field.size] = raw
        return bytes(out)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Single numbers as int, arrays and structs as their raw bytes, text up to its zero."""
        if len(data) < self.size:
            raise LayoutError(f"struct {self.name} has {self.size} bytes, not {len(data)}")
        values: dict[str, Any] = {}
        for field in self.fields:
            raw = bytes(data[field.offset : field.offset + field.size])
            if field.kind == "char":
                values[field.name] = raw.split(b"\0", 1)[0]
            elif field.count or field.kind == "struct":
                values[field.name] = raw
            else:
                raw = raw if _LITTLE else raw[::-1]
                values[field.name] = int.from_bytes(raw, "little", signed=field.kind[0] == "i")
        return values


class MapSpec(msgspec.Struct, frozen=True):
    """A map as the C declares it. `type` and `flags` are the kernel's numbers, `max_entries` is not
    part of it: the C says 1 for every map."""

    name: str
    type: int
    flags: int
    key: Record
    value: Record


class Function(msgspec.Struct, frozen=True):
    """A function within a program: where its first instruction is, and how many bytes the record
    has that it takes."""

    name: str
    at: int
    size: int


class Program(msgspec.Struct, frozen=True):
    """One program's instructions; `relocations` are (instruction index, map name), `kernel_reads`
    indexes of what ebpf/kernel/fields.py completes, `functions` what it calls."""

    name: str
    unit: str
    insns: bytes
    relocations: tuple[tuple[int, str], ...]
    prog_type: int
    attach_type: int
    kernel_reads: tuple[int, ...] = ()
    functions: tuple[Function, ...] = ()

    @property
    def on_lists(self) -> bool:
        """Whether processes run it, over lists of flows (ebpf/flowlists.py), and no packet."""
        return self.unit in ("table4", "table6")


class Bundle(msgspec.Struct, frozen=True):
    """All that a compilation gives. `hash` names sources, defines and compilers, and what was
    `left_out` by `without`."""

    hash: str
    variant: str
    programs: dict[str, Program]
    maps: dict[str, MapSpec]
    enums: dict[str, int]
    left_out: frozenset[str] = frozenset()

    def without(self, names: Collection[str]) -> Bundle:
        """The same, but for these programs: nothing leads to them."""
        if not names:
            return self
        left = {name: one for name, one in self.programs.items() if name not in names}
        digest = hashlib.sha256(" ".join((self.hash, *sorted(names))).encode()).hexdigest()
        return msgspec.structs.replace(self, hash=digest, programs=left, left_out=frozenset(names))

    def tail_programs(self) -> Slots:
        """Tail-called programs by array and name, with their index there."""
        return tail_programs(self.enums)


# By array of programs, those in it, with their index.
Slots = Mapping[str, Mapping[str, int]]
# Arrays of a generation: how the constants of their slots begin, and what of that is no name. What
# a driver runs cannot share an array with what TC runs.
PROGRAM_ARRAYS = {"programs": ("PROGRAM_", "PROGRAM_"), "xdp_programs": ("XDP_FORWARD", "")}


def tail_programs(enums: Mapping[str, int]) -> Slots:
    """The same, of the constants of consts.h."""
    return {
        array: {
            name.removeprefix(prefix).lower(): value
            for name, value in enums.items()
            if name.startswith(start) and name != "PROGRAM_MAX"
        }
        for array, (start, prefix) in PROGRAM_ARRAYS.items()
    }


_LITTLE = np.little_endian
_NUMPY = {"char": "u1"} | {f"{s}{8 * n}": f"{s}{n}" for s in "ui" for n in (1, 2, 4, 8)}


@functools.lru_cache(maxsize=256)
def _dtype(record: Record) -> np.dtype[Any]:
    if record.scalar:
        return np.dtype(_NUMPY[record.fields[0].kind])
    return _struct_dtype(record.fields, record.size)


def _struct_dtype(fields: tuple[Field, ...], size: int) -> np.dtype[Any]:
    formats: list[Any] = []
    for field in fields:
        single = field.size // (field.count or 1)
        base: Any
        if field.kind == "struct":
            base = _struct_dtype(field.fields, single)
        elif field.kind == "char":
            # numpy's S type drops the trailing zeros, which is what text in a record wants.
            formats.append(f"S{field.size}")
            continue
        else:
            base = np.dtype(_NUMPY[field.kind])
        formats.append((base, (field.count,)) if field.count else base)
    return np.dtype(
        {
            "names": [field.name for field in fields],
            "formats": formats,
            "offsets": [field.offset for field in fields],
            "itemsize": size,
        }
    )
