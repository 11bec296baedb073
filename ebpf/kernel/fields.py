"""Instructions that read what the kernel keeps to itself, completed for the kernel at hand.

The C leaves two places open (`checksum_kind` in bpf_src/checksum.h): a call, which becomes a cast
of the program's context to the kernel's own struct sk_buff and costs nothing, and a read of its
member ip_summed, whose place the kernel's type information tells. The cast exists since Linux 6.2.
"""

from __future__ import annotations

import functools
import os
import struct
import sys

import msgspec

from ebpf.errors import LbError, MissingFeature
from ebpf.kernel import btf, features, libbpf
from ebpf.layouts import SCHED_CLS

# enum checksum_kind of bpf_src/checksum.h: what makes the programs ask the helper.
_CHECKSUM_COMPLETE = 2

_INSTRUCTION = struct.Struct("=BBhi")  # opcode, registers, offset, number
_MOVE, _MOVE_REGISTER, _EXIT = 0xB7, 0xBF, 0x95
_CALL, _KERNEL_FUNCTION = 0x85, 2 << 4
_READ_BYTE, _SHIFT_RIGHT = 0x71, 0x77


class Place(msgspec.Struct, frozen=True):
    """Where ip_summed lies in struct sk_buff, and the id of the cast to that."""

    cast: int
    byte: int
    shift: int


def complete(code: bytearray, index: int) -> None:
    """Completes what is left open at instruction `index`."""
    _fill(code, index, checksum_place())


def _fill(code: bytearray, index: int, place: Place | None) -> None:
    at = index * _INSTRUCTION.size
    opcode, registers, _, _ = _INSTRUCTION.unpack_from(code, at)
    if opcode == _CALL:
        made = (_MOVE, 0, 0, _CHECKSUM_COMPLETE)
        if place:
            made = (_CALL, _KERNEL_FUNCTION, 0, place.cast)
        _INSTRUCTION.pack_into(code, at, *made)
        return
    shift = 0
    if place:
        shift = place.shift
        _INSTRUCTION.pack_into(code, at, _READ_BYTE, registers, place.byte, 0)
    else:
        _INSTRUCTION.pack_into(code, at, _MOVE_REGISTER, registers, 0, 0)
    _INSTRUCTION.pack_into(code, at + 8, _SHIFT_RIGHT, registers & 0xF, 0, shift)


@functools.cache
def checksum_place() -> Place | None:
    """Tried on this kernel; None if its programs cannot read the field."""
    if features.CHECKSUM_KIND in features.masked() or sys.byteorder != "little":
        return None
    try:
        with btf.KernelTypes() as types:
            cast = types.find("bpf_cast_to_kern_ctx", btf.FUNC)
            owner = types.find("sk_buff", btf.STRUCT)
            member = types.member(owner, "ip_summed") if owner else None
    except MissingFeature:
        return None
    if not cast or member is None:
        return None
    place = Place(cast, member[0] // 8, member[0] % 8)
    trial = bytearray(
        _INSTRUCTION.pack(_CALL, 0, 0, 0)
        + _INSTRUCTION.pack(_READ_BYTE, 0, 0, 0)
        + _INSTRUCTION.pack(_SHIFT_RIGHT, 0, 0, 0)
        + _INSTRUCTION.pack(_EXIT, 0, 0, 0)
    )
    _fill(trial, 0, place)
    _fill(trial, 1, place)
    try:
        os.close(libbpf.prog_load(SCHED_CLS, "lbctl_probe", bytes(trial)))
    except LbError:
        return None
    return place
