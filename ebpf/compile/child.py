"""The compiler process: the only code that imports bcc. Reads a unit on stdin, writes its result.

Started as a script by children.py beside it, possibly under another Python than the caller's, so
it uses the standard library only. One JSON object in, see _Request there. One out: programs and
maps, or "error" with its kind. Compiler messages go to stderr as they are.
"""

from __future__ import annotations

import base64
import ctypes
import fcntl
import json
import os
import struct
import sys
import threading
from typing import Any

LD_IMM64 = 0x18
CALL = 0x85
CALL_INDIRECT = 0x8D
PSEUDO_MAP_FD = 1
RINGBUF = 27
# What bpf_src/checksum.h leaves open: a call by its number, a read of a byte by its offset.
KERNEL_CAST = (CALL, -1)
KERNEL_READ = (0x71, 32766)

# linux/filter.h, linux/seccomp.h, linux/prctl.h
BPF_LD_W_ABS, BPF_JEQ, BPF_RET = 0x20, 0x15, 0x06
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_NEW_LISTENER = 1 << 3
SECCOMP_RET_USER_NOTIF, SECCOMP_RET_ALLOW = 0x7FC00000, 0x7FFF0000
SECCOMP_NOTIF_SIZE = 80
SECCOMP_NOTIF_RECV, SECCOMP_NOTIF_SEND = 0xC0502100, 0xC0182101

_KINDS = {
    ctypes.c_bool: "u8",
    ctypes.c_char: "char",
    ctypes.c_byte: "i8",
    ctypes.c_ubyte: "u8",
    ctypes.c_short: "i16",
    ctypes.c_ushort: "u16",
    ctypes.c_int: "i32",
    ctypes.c_uint: "u32",
    ctypes.c_long: "i64",
    ctypes.c_ulong: "u64",
    ctypes.c_longlong: "i64",
    ctypes.c_ulonglong: "u64",
}


class Refused(Exception):
    """Something the caller turns into a sentence: kind, detail."""


def fields_of(kind: Any) -> list[dict[str, Any]]:
    """Fields of a ctypes structure as plain records; padding that bcc invents is left out."""
    fields = []
    for name, declared, *bits in kind._fields_:
        if bits:
            raise Refused("layout", f"bit field {name}")
        if name.startswith("__pad"):
            continue
        count, base = 0, declared
        if issubclass(declared, ctypes.Array):
            count, base = declared._length_, declared._type_
            if issubclass(base, ctypes.Array):
                raise Refused("layout", f"array of arrays {name}")
        nested = fields_of(base) if issubclass(base, ctypes.Structure) else []
        fields.append(
            {
                "name": name,
                "offset": getattr(kind, name).offset,
                "size": ctypes.sizeof(declared),
                "count": count,
                "kind": "struct" if nested else _KINDS[base],
                "fields": nested,
            }
        )
    return fields


def record_of(decode: Any, description: bytes, size: int, where: str) -> dict[str, Any]:
    """The layout of a key or value from bcc's description of it; `size` is the compiler's."""
    decoded = json.loads(description)
    kind = decode(decoded)
    if ctypes.sizeof(kind) != size:
        raise Refused("layout", f"{where} has {size} bytes in C, {ctypes.sizeof(kind)} as listed")
    if issubclass(kind, ctypes.Structure):
        return {"name": decoded[0], "size": size, "fields": fields_of(kind)}
    scalar = {"name": "", "offset": 0, "size": size, "count": 0, "kind": _KINDS[kind], "fields": []}
    return {"name": "", "size": size, "fields": [scalar]}


def maps_of(decode: Any, lib: Any, module: Any) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Every map of the module, and the file descriptors instructions know them by."""
    maps, by_fd = [], {}
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    for call in (lib.bpf_table_key_size, lib.bpf_table_leaf_size):
        call.restype = ctypes.c_size_t
        call.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for number in range(lib.bpf_num_tables(module)):
        raw = lib.bpf_table_name(module, number)
        name = raw.decode()
        by_fd[lib.bpf_table_fd(module, raw)] = name
        key = lib.bpf_table_key_desc(module, raw)
        value = lib.bpf_table_leaf_desc(module, raw)
        if lib.bpf_table_type_id(module, number) == RINGBUF:
            # The kernel wants no sizes, and bcc names some.
            nothing = {"name": "", "size": 0, "fields": []}
            flags = lib.bpf_table_flags_id(module, number)
            ring = {"name": name, "type": RINGBUF, "flags": flags}
            maps.append({**ring, "key": nothing, "value": nothing})
            continue
        maps.append(
            {
                "name": name,
                "type": lib.bpf_table_type_id(module, number),
                "flags": lib.bpf_table_flags_id(module, number),
                "key": record_of(
                    decode, key, lib.bpf_table_key_size(module, raw), f"key of {name}"
                ),
                "value": record_of(
                    decode, value, lib.bpf_table_leaf_size(module, raw), f"value of {name}"
                ),
            }
        )
    return maps, by_fd


def program_of(name: str, code: bytes, by_fd: dict[int, str]) -> dict[str, Any]:
    """Instructions with map references taken out, and where they were; `kernel_reads` are where
    ebpf/kernel/fields.py has something to complete."""
    out = bytearray(code)
    relocations = []
    kernel_reads = []
    index = 0
    while index * 8 < len(code):
        opcode, registers, offset, value = struct.unpack_from("=BBhi", code, index * 8)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        if opcode == CALL_INDIRECT or (opcode == CALL and source == 1):
            raise Refused("call", name)
        if (opcode, value) == KERNEL_CAST or (opcode, offset) == KERNEL_READ:
            kernel_reads.append(index)
        if opcode == LD_IMM64:
            if source == PSEUDO_MAP_FD:
                if value not in by_fd:
                    raise Refused("map", name)
                relocations.append([index, by_fd[value]])
                struct.pack_into("=i", out, index * 8 + 4, 0)
            elif source:
                raise Refused("global", name)
            index += 1
        index += 1
    return {
        "name": name,
        "insns": base64.b64encode(bytes(out)).decode(),
        "relocations": relocations,
        "kernel_reads": kernel_reads,
    }


def stand_in_for_bpf(bpf: int, seccomp: int) -> None:
    """Answers bcc's own bpf(2) calls from now on. It makes every map as it compiles, only to have
    a descriptor that instructions can name; any descriptor does, and asks for no privilege.

    Where the kernel has no such filter (before Linux 5.0, or forbidden), bcc makes its maps.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [
        (BPF_LD_W_ABS, 0, 0, 0),  # the call's number
        (BPF_JEQ, 0, 1, bpf),
        (BPF_RET, 0, 0, SECCOMP_RET_USER_NOTIF),
        (BPF_RET, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(held))
    if not bpf or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return
    listener = libc.syscall(
        ctypes.c_long(seccomp), SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_NEW_LISTENER, program
    )
    if listener >= 0:
        threading.Thread(target=answer_calls, args=(listener,), daemon=True).start()


def answer_calls(listener: int) -> None:
    """Each call returns a descriptor of nothing in particular. Ends with the process."""
    while True:
        call = bytearray(SECCOMP_NOTIF_SIZE)
        fcntl.ioctl(listener, SECCOMP_NOTIF_RECV, call)
        (number,) = struct.unpack_from("=Q", call)
        reply = struct.pack("=QqiI", number, os.open(os.devnull, os.O_RDONLY), 0, 0)
        fcntl.ioctl(listener, SECCOMP_NOTIF_SEND, reply)


def compile_unit(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles one unit; see the module's text for the two objects."""
    try:
        import bcc
    except ImportError as error:
        raise Refused("no-bcc", str(error)) from error
    if not hasattr(bcc, "BPF"):
        raise Refused("impostor", str(getattr(bcc, "__file__", "")))
    from bcc.libbcc import lib

    stand_in_for_bpf(request["bpf"], request["seccomp"])
    os.environ["BCC_KERNEL_SOURCE"] = request["tree"]
    text, flags = request["text"].encode(), [flag.encode() for flag in request["flags"]]
    # Not bcc.BPF(): that attaches by name, and raises nothing narrower than Exception.
    module = lib.bpf_module_create_c_from_string(
        text, 0, (ctypes.c_char_p * len(flags))(*flags), len(flags), True, None
    )
    if not module:
        raise Refused("compile", "the compiler gave no reason")
    maps, by_fd = maps_of(bcc.BPF._decode_table_type, lib, module)
    programs = []
    for number in range(lib.bpf_num_functions(module)):
        raw = lib.bpf_function_name(module, number)
        size = lib.bpf_function_size(module, raw)
        code = ctypes.string_at(lib.bpf_function_start(module, raw), size)
        programs.append(program_of(raw.decode(), code, by_fd))
    return {"programs": programs, "maps": maps}


def main() -> None:
    request = json.load(sys.stdin)
    # bcc and clang print to stdout at times: the answer keeps a descriptor of its own.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        result = compile_unit(request)
    except Refused as refused:
        kind, detail = refused.args
        result = {"error": kind, "detail": detail}
    with os.fdopen(answer, "w") as stream:
        json.dump(result, stream)


if __name__ == "__main__":
    main()
