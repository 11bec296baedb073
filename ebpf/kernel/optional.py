"""Helpers that not every kernel has: where one is missing, its calls become a zero.

The programs take that for "there is none". The verifier would refuse them otherwise.
"""

from __future__ import annotations

import errno
import functools
import os
import struct

from ebpf.errors import KernelError
from ebpf.kernel import features, libbpf
from ebpf.layouts import CGROUP_SOCK_ADDR, SOCKET_HOOKS

SKC_TO_MPTCP_SOCK = 196  # by its number in enum bpf_func_id; needs CONFIG_MPTCP

_INSTRUCTION = struct.Struct("=BBhi")  # opcode, registers, offset, number
_CALL, _MOVE, _EXIT, _LOAD_WORD = 0x85, 0xB7, 0x95, 0x79
_SOCKET_AT = 64  # member sk of struct bpf_sock_addr
_ZERO = _INSTRUCTION.pack(_MOVE, 0, 0, 0)
_CALLS = _INSTRUCTION.pack(_CALL, 0, 0, SKC_TO_MPTCP_SOCK)


def without_missing(code: bytearray) -> None:
    """Replaces the calls of what this kernel does not have."""
    if _CALLS not in code or has_mptcp():
        return
    for at in range(0, len(code), _INSTRUCTION.size):
        if code[at : at + _INSTRUCTION.size] == _CALLS:
            code[at : at + _INSTRUCTION.size] = _ZERO


@functools.cache
def has_mptcp() -> bool:
    """Whether programs can tell which MPTCP socket a TCP socket belongs to; tried on this kernel.

    Raises KernelError where loading is not allowed at all.
    """
    if features.MPTCP in features.masked():
        return False
    kind, attach_type = SOCKET_HOOKS["connect4"]
    assert kind == CGROUP_SOCK_ADDR
    trial = (
        _INSTRUCTION.pack(_LOAD_WORD, 1 | 1 << 4, _SOCKET_AT, 0)
        + _CALLS
        + _INSTRUCTION.pack(_MOVE, 0, 0, 1)
        + _INSTRUCTION.pack(_EXIT, 0, 0, 0)
    )
    try:
        os.close(libbpf.prog_load(kind, "lbctl_probe", trial, attach_type))
    except KernelError as error:
        if error.errno == errno.EPERM:
            raise
        return False
    return True
