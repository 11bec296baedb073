"""The `meta` map: what every pinned map holds, so that a reader needs no compiler.

Key: text, 32 bytes. `NAME:ID` of a map gives its MapSpec (the kernel's id, since a map of the same
name may replace it), `bundle` the hash and variant of the programs' code, `enums` the constants of
consts.h. Values are JSON text, zero-terminated.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TypeVar

import msgspec

from ebpf import maps
from ebpf.errors import Damaged, KernelError, LayoutError
from ebpf.kernel import bpffs, libbpf
from ebpf.layouts import Bundle, Field, MapSpec, Record
from ebpf.maps import HashMap, Map, of_kind

_NAME = "meta"
_KEY_SIZE = 32
_VALUE_SIZE = 8192
_ENTRIES = 256
_HINT = "Without the instance, and its flows, the next start would make a new one."

T = TypeVar("T")


class BundleNote(msgspec.Struct, frozen=True):
    """Which code the instance runs."""

    hash: str
    variant: str


def _text(name: str, size: int) -> Record:
    return Record(name, size, (Field("text", 0, size, size, "char"),))


_SPEC = MapSpec(
    _NAME,
    maps.HASH,
    maps.F_NO_PREALLOC,
    _text("meta_key", _KEY_SIZE),
    _text("meta_value", _VALUE_SIZE),
)


class Meta:
    """The open map."""

    def __init__(self, table: HashMap) -> None:
        self._table = table

    @classmethod
    def create_or_open(cls, pin_dir: Path) -> Meta:
        path = pin_dir / _NAME
        if path.exists():
            return cls.open(pin_dir, readonly=False)
        table = of_kind(HashMap, maps.create(_SPEC, _ENTRIES))
        bpffs.pin(table.fd, path)
        return cls(table)

    @classmethod
    def open(cls, pin_dir: Path, readonly: bool) -> Meta:
        """Raises LbError when there is no instance."""
        path = pin_dir / _NAME
        try:
            if not path.exists():
                raise bpffs.absent(pin_dir)
        except PermissionError as error:
            raise KernelError(f"cannot read {pin_dir}", errno.EACCES) from error
        fd = libbpf.obj_get(str(path), readonly)
        check(_SPEC, fd, path)
        return cls(of_kind(HashMap, maps.wrap(_SPEC, fd, readonly)))

    def spec_of(self, name: str, fd: int) -> MapSpec:
        """The layout of the pinned map open as `fd`, checked against what the kernel says of it."""
        key = f"{name}:{libbpf.map_info(fd).id}"
        spec = self._get(key, MapSpec)
        if spec is None:
            raise Damaged(f"nothing is known of the layout of pinned map {name}", _HINT)
        check(spec, fd, name)
        return spec

    def note_map(self, table: Map) -> None:
        """Records a map's layout; done before it is pinned."""
        self._put(f"{table.name}:{table.id}", table.spec)

    def note_bundle(self, bundle: Bundle) -> None:
        self._put("bundle", BundleNote(bundle.hash, bundle.variant))
        self._put("enums", bundle.enums)

    def bundle(self) -> BundleNote | None:
        return self._get("bundle", BundleNote)

    def enums(self) -> dict[str, int]:
        return self._get("enums", dict[str, int]) or {}

    def forget_maps(self, kept: set[tuple[str, int]]) -> None:
        """Removes the layouts of maps that are not among the `kept` (name, id)."""
        for key, _ in list(self._table.items()):
            name, separator, number = key.rstrip(b"\0").decode().partition(":")
            if separator and (name, int(number)) not in kept:
                self._table.delete(key)

    def restore_pin(self, pin_dir: Path) -> bool:
        """Pin it again if its pin is gone or leads elsewhere; whether that was so."""
        return bpffs.restore(self._table.fd, pin_dir / _NAME, libbpf.map_id)

    def close(self) -> None:
        self._table.close()

    def _put(self, key: str, value: object) -> None:
        data = msgspec.json.encode(value)
        if len(data) >= _VALUE_SIZE:
            raise LayoutError(f"{key} takes {len(data)} bytes of JSON, of {_VALUE_SIZE} possible")
        raw = self._table.spec.key.pack(text=key.encode())
        new = self._table.spec.value.pack(text=data)
        # A start that changes nothing writes nothing.
        if self._table.get(raw) != new:
            self._table.put(raw, new)

    def _get(self, key: str, kind: type[T]) -> T | None:
        data = self._table.get(self._table.spec.key.pack(text=key.encode()))
        if data is None:
            return None
        try:
            return msgspec.json.decode(data.split(b"\0", 1)[0], type=kind)
        except msgspec.DecodeError as error:
            raise Damaged(f"entry {key} of map meta is unreadable: {error}", _HINT) from error


def check(spec: MapSpec, fd: int, where: Path | str) -> None:
    """Closes `fd` and raises Damaged unless the map it names has the shape of `spec`."""
    try:
        info = libbpf.map_info(fd)
    except KernelError:
        libbpf.close(fd)
        raise
    found = (int(info.type), int(info.key_size), int(info.value_size))
    wanted = (spec.type, spec.key.size, spec.value.size)
    # The kernel adds no flags to those asked for but BPF_F_RDONLY and the like of the descriptor.
    flags = int(info.map_flags) & (maps.F_NO_PREALLOC | maps.F_MMAPABLE)
    if found == wanted and flags == spec.flags & (maps.F_NO_PREALLOC | maps.F_MMAPABLE):
        return
    libbpf.close(fd)
    kind = maps.TYPE_NAMES.get(found[0], str(found[0]))
    raise Damaged(
        f"pinned map {where} is not what this instance pinned: {kind} with keys of {found[1]} and "
        f"values of {found[2]} bytes, flags {flags:#x}, instead of "
        f"{maps.TYPE_NAMES.get(spec.type, str(spec.type))} with {spec.key.size} and "
        f"{spec.value.size} bytes, flags {spec.flags:#x}",
        _HINT,
    )
