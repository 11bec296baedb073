"""bpf(2) itself, for what the distribution's libbpf has no call for: links, and tcx's order."""

from __future__ import annotations

import ctypes
import errno
import functools
import platform
import struct

from ebpf import calls
from ebpf.errors import KernelError, MissingFeature

_PROG_BY_ID = 13
_PROG_QUERY = 16
_LINK_CREATE = 28
_OBJ_GET_INFO = 15
_F_BEFORE = 1 << 3
_F_AFTER = 1 << 4
_ATTR_SIZE = 72
_MOST_PROGRAMS = 64

ATTACH_TYPES = {"ingress": 46, "egress": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
DIRECTIONS = {number: name for name, number in ATTACH_TYPES.items()}
_XDP = 37
_XDP_NATIVE = 1 << 2  # XDP_FLAGS_DRV_MODE


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytearray, what: str, hint: str = "") -> int:
    """The system call; `attributes` is union bpf_attr and is written back. Raises KernelError."""
    known = calls.numbers()
    if known is None:
        raise MissingFeature(f"the number of bpf(2) on {platform.machine()} is not known here")
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    result: int = _library().syscall(
        ctypes.c_long(known.bpf), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        raise KernelError(what, ctypes.get_errno(), hint)
    return result


def tcx_link(prog_fd: int, ifindex: int, direction: str, position: str) -> int:
    """Attaches by link and returns its fd. `position` is "first" or "last" among the programs
    attached now; before or after nobody in particular means the end of the list."""
    place = {"first": _F_BEFORE, "last": _F_AFTER}[position]
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into("=IIII", attributes, 0, prog_fd, ifindex, ATTACH_TYPES[direction], place)
    return bpf(_LINK_CREATE, attributes, f"cannot attach to {direction} of interface {ifindex}")


def xdp_link(prog_fd: int, ifindex: int) -> int:
    """Attaches to a device's driver, and nowhere else, and returns the link's fd."""
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into("=IIII", attributes, 0, prog_fd, ifindex, _XDP, _XDP_NATIVE)
    return bpf(_LINK_CREATE, attributes, f"cannot attach to the driver of interface {ifindex}")


def xdp_link_info(fd: int) -> tuple[int, int]:
    """(program id, ifindex) of such a link; ifindex 0 when its device is gone."""
    _, prog_id, rest = _link_info(fd)
    (ifindex,) = struct.unpack_from("=I", rest, 0)
    return prog_id, ifindex


def program(prog_id: int) -> int:
    """Opens a program by its number. Raises KernelError, ENOENT if there is none."""
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into("=I", attributes, 0, prog_id)
    return bpf(_PROG_BY_ID, attributes, f"cannot open program {prog_id}")


def link_info(fd: int) -> tuple[int, int, int, str]:
    """(link type, program id, ifindex, direction) of a link; ifindex 0 when its device is gone."""
    kind, prog_id, rest = _link_info(fd)
    ifindex, attach_type = struct.unpack_from("=II", rest, 0)
    return kind, prog_id, ifindex, DIRECTIONS.get(attach_type, "")


def _link_info(fd: int) -> tuple[int, int, bytes]:
    """(link type, program id, what depends on the type) of a link."""
    info = bytearray(128)
    view = (ctypes.c_char * len(info)).from_buffer(info)
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into("=IIQ", attributes, 0, fd, len(info), ctypes.addressof(view))
    bpf(_OBJ_GET_INFO, attributes, f"cannot ask about the link open as {fd}")
    kind, _, prog_id = struct.unpack_from("=III", info, 0)
    return kind, prog_id, bytes(info[16:])


def cgroup_link(prog_fd: int, cgroup_fd: int, attach_type: int) -> int:
    """Attaches to a cgroup, beside what others have there, and returns the link's fd."""
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into("=IIII", attributes, 0, prog_fd, cgroup_fd, attach_type, 0)
    return bpf(_LINK_CREATE, attributes, f"cannot attach to the cgroup open as {cgroup_fd}")


def cgroup_link_info(fd: int) -> tuple[int, int, int]:
    """(link type, program id, cgroup id) of a link; cgroup id 0 when its cgroup is gone."""
    kind, prog_id, rest = _link_info(fd)
    (cgroup_id,) = struct.unpack_from("=Q", rest, 0)
    return kind, prog_id, cgroup_id


def tcx_programs(ifindex: int, direction: str) -> list[int]:
    """Ids of the programs attached by tcx, in the order they run. EINVAL: the kernel has no tcx."""
    ids = bytearray(4 * _MOST_PROGRAMS)
    view = (ctypes.c_char * len(ids)).from_buffer(ids)
    attributes = bytearray(_ATTR_SIZE)
    struct.pack_into(
        "=IIIIQI",
        attributes,
        0,
        ifindex,
        ATTACH_TYPES[direction],
        0,
        0,
        ctypes.addressof(view),
        _MOST_PROGRAMS,
    )
    try:
        bpf(_PROG_QUERY, attributes, f"cannot list the programs of interface {ifindex}")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    (count,) = struct.unpack_from("=I", attributes, 24)
    return list(struct.unpack_from(f"={count}I", ids, 0))
