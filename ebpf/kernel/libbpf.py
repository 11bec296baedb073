"""libbpf.so.1 through ctypes: thin calls that return numbers or raise KernelError."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import re
from pathlib import Path
from typing import Any

from ebpf.errors import KernelError, MissingFeature

_LOG_SIZE = 1 << 20
_LOG_LINES = 25
_FUNCTION_INFO = 8  # bytes of struct bpf_func_info

Pointer = ctypes.c_void_p


class _LoadOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_uint),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", Pointer),
        ("func_info", Pointer),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", Pointer),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", Pointer),
    )


class _MapOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _BatchOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("elem_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _GetOptions(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("file_flags", ctypes.c_uint32), ("", ctypes.c_uint32))


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", Pointer),
        ("data_out", Pointer),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", Pointer),
        ("ctx_out", Pointer),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The first members of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class ProgInfo(ctypes.Structure):
    """The first members of struct bpf_prog_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_ubyte * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library. Raises MissingFeature when it is not installed."""
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        raise MissingFeature(
            f"libbpf.so.1 cannot be loaded: {error}", "On Debian and Ubuntu: apt install libbpf1."
        ) from error
    lib.libbpf_set_print(None)  # its warnings repeat what the errors here say
    lib.bpf_prog_load.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_size_t,
        Pointer,
    ]
    lib.bpf_map_create.argtypes = [
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.c_uint32,
        ctypes.c_uint32,
        ctypes.c_uint32,
        Pointer,
    ]
    lib.bpf_btf_load.argtypes = [ctypes.c_char_p, ctypes.c_size_t, Pointer]
    fd = ctypes.c_int
    lib.bpf_map_lookup_elem.argtypes = [fd, Pointer, Pointer]
    lib.bpf_map_update_elem.argtypes = [fd, Pointer, Pointer, ctypes.c_uint64]
    lib.bpf_map_delete_elem.argtypes = [fd, Pointer]
    lib.bpf_map_get_next_key.argtypes = [fd, Pointer, Pointer]
    lib.bpf_map_lookup_batch.argtypes = [fd, *[Pointer] * 6]
    lib.bpf_map_update_batch.argtypes = [fd, *[Pointer] * 4]
    lib.bpf_map_delete_batch.argtypes = [fd, *[Pointer] * 3]
    lib.bpf_obj_pin.argtypes = [fd, ctypes.c_char_p]
    lib.bpf_obj_get_opts.argtypes = [ctypes.c_char_p, Pointer]
    lib.bpf_obj_get_info_by_fd.argtypes = [fd, Pointer, Pointer]
    lib.bpf_link_detach.argtypes = [fd]
    lib.bpf_link_update.argtypes = [fd, fd, Pointer]
    lib.bpf_prog_test_run_opts.argtypes = [fd, Pointer]
    return lib


def prog_load(
    prog_type: int,
    name: str,
    insns: bytes,
    expected_attach_type: int = 0,
    log_level: int = 0,
    types: int = 0,
    infos: bytes = b"",
) -> int:
    """Loads instructions whose map fds are filled in; returns the program's fd. `types` and `infos`
    tell of the functions in it (functions.py).

    On refusal the load is repeated with the verifier's log, whose last lines go into the error.
    """
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions), expected_attach_type=expected_attach_type
    )
    if infos:
        options.prog_btf_fd = types
        options.func_info = ctypes.cast(ctypes.c_char_p(infos), Pointer)
        options.func_info_rec_size = _FUNCTION_INFO
        options.func_info_cnt = len(infos) // _FUNCTION_INFO
    log = None
    if log_level:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        options.log_level, options.log_size = log_level, _LOG_SIZE
        options.log_buf = ctypes.cast(log, Pointer)
    fd: int = library().bpf_prog_load(
        prog_type,
        name.encode()[:15],
        b"GPL",
        insns,
        len(insns) // 8,
        ctypes.byref(options),
    )
    if fd >= 0:
        return fd
    if log is None:
        # Level 1 explains; a log too small for its text is an error of its own (ENOSPC), and then
        # what fits is shown.
        return prog_load(prog_type, name, insns, expected_attach_type, 1, types, infos)
    lines = log.value.decode(errors="replace").strip().splitlines()
    told = "\n  ".join(lines[-_LOG_LINES:])
    raise KernelError(
        f"the kernel does not load program {name}",
        -fd,
        f"The verifier says:\n  {told}" if told else "",
    )


def btf_load(types: bytes, name: str) -> int:
    """Type information of a program's own; returns its fd."""
    fd: int = library().bpf_btf_load(types, len(types), None)
    if fd < 0:
        raise KernelError(f"the kernel does not take the types of program {name}", -fd)
    return fd


def map_create(
    map_type: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0
) -> int:
    """Returns the new map's fd."""
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=flags)
    fd: int = library().bpf_map_create(
        map_type, name.encode()[:15], key_size, value_size, max_entries, ctypes.byref(options)
    )
    if fd < 0:
        raise KernelError(f"cannot create map {name} with {max_entries} entries", -fd)
    return fd


def map_update(fd: int, key: Any, value: Any, name: str) -> None:
    """One element of an array, per-CPU array or program array."""
    if (code := library().bpf_map_update_elem(fd, key, value, 0)) < 0:
        raise KernelError(f"cannot write {name}", -code)


def obj_pin(fd: int, path: str) -> None:
    """Raises KernelError EEXIST when the path is taken."""
    if (code := library().bpf_obj_pin(fd, path.encode())) < 0:
        hint = ""
        if -code in (errno.EPERM, errno.EINVAL, errno.ENOENT):
            hint = "Pins live in a BPF file system: mount -t bpf bpf /sys/fs/bpf."
        raise KernelError(f"cannot pin {path}", -code, hint)


BPF_F_RDONLY = 1 << 3


def obj_get(path: str, readonly: bool = False) -> int:
    """Opens a pin; `readonly` (maps only) asks for no more than reading."""
    options = _GetOptions(sz=ctypes.sizeof(_GetOptions), file_flags=BPF_F_RDONLY if readonly else 0)
    fd: int = library().bpf_obj_get_opts(path.encode(), ctypes.byref(options))
    if fd < 0:
        raise KernelError(f"cannot open {path}", -fd)
    return fd


def link_update(link_fd: int, prog_fd: int, where: str) -> None:
    """Another program for a link, between one packet and the next."""
    if (code := library().bpf_link_update(link_fd, prog_fd, None)) < 0:
        raise KernelError(f"cannot replace the program at {where}", -code)


def link_detach(path: str) -> None:
    """Detaches a pinned link; one whose target is gone is no error."""
    fd = obj_get(path)
    try:
        code = library().bpf_link_detach(fd)
    finally:
        os.close(fd)
    if code < 0 and -code not in (errno.ENOLINK, errno.ENODEV):
        raise KernelError(f"cannot detach {path}", -code)


def map_info(fd: int) -> MapInfo:
    info = MapInfo()
    _info(fd, info)
    return info


def prog_info(fd: int) -> ProgInfo:
    info = ProgInfo()
    _info(fd, info)
    return info


def map_id(fd: int) -> int:
    """The kernel's number of a map."""
    return int(map_info(fd).id)


def prog_id(fd: int) -> int:
    """The kernel's number of a program."""
    return int(prog_info(fd).id)


def verified(fd: int) -> int:
    """How many instructions the verifier looked at when it loaded this program."""
    found = re.search(
        r"^verified_insns:\s+(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text(), re.M
    )
    return int(found[1]) if found else 0


def _info(fd: int, info: Any) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    code = library().bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size))
    if code < 0:
        raise KernelError(f"cannot ask about file descriptor {fd}", -code)


def batch_options(elem_flags: int = 0) -> _BatchOptions:
    return _BatchOptions(sz=ctypes.sizeof(_BatchOptions), elem_flags=elem_flags)


def close(fd: int) -> None:
    os.close(fd)
