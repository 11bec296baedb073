"""Makes one program of each and the subprograms that it calls (bpf_src/subprogram.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from ebpf.errors import CompileError
from ebpf.layouts import Function

_INSTRUCTION = struct.Struct("=BBhi")  # opcode, registers, offset, number
_CALL, _PSEUDO_CALL = 0x85, 1 << 4
_LOAD_WIDE, _MOVE = 0x18, 0xB7
_FUNCTION, _SIZE, _ENUM = "sub_", "size_", "SUBPROGRAM_"


class Piece(msgspec.Struct):
    """A function as the compiler leaves it: a program, or a part of one."""

    name: str
    insns: bytes
    relocations: tuple[tuple[int, str], ...]
    kernel_reads: tuple[int, ...]


class Linked(msgspec.Struct, frozen=True):
    """A whole program; `functions` are those it calls, as they lie in it."""

    name: str
    insns: bytes
    relocations: tuple[tuple[int, str], ...]
    kernel_reads: tuple[int, ...]
    functions: tuple[Function, ...]


def link(pieces: Iterable[Piece], enums: Mapping[str, int]) -> list[Linked]:
    """The programs among a unit's `pieces`. Raises CompileError for a call of what the unit lacks.

    `enums` has the numbers that stand for subprograms: SUBPROGRAM_FIND for sub_find.
    """
    programs = {piece.name: piece for piece in pieces}
    parts = {name: programs.pop(name) for name in list(programs) if name.startswith(_FUNCTION)}
    sizes = {name: programs.pop(name) for name in list(programs) if name.startswith(_SIZE)}
    numbers = {
        -number: _FUNCTION + name.removeprefix(_ENUM).lower()
        for name, number in enums.items()
        if name.startswith(_ENUM)
    }
    return [_link(piece, parts, sizes, numbers) for piece in programs.values()]


def _link(
    program: Piece, parts: dict[str, Piece], sizes: dict[str, Piece], numbers: dict[int, str]
) -> Linked:
    starts: dict[str, int] = {}  # of what is called, in the order of its instructions
    calls: list[tuple[int, str]] = []
    code = bytearray()
    relocations: list[tuple[int, str]] = []
    kernel_reads: list[int] = []
    waiting = [program]
    while waiting:
        piece = waiting.pop(0)
        base = len(code) // _INSTRUCTION.size
        if piece is not program:
            starts[piece.name] = base
        code += piece.insns
        relocations += [(base + at, name) for at, name in piece.relocations]
        kernel_reads += [base + at for at in piece.kernel_reads]
        for at, name in _calls(piece, numbers):
            if name not in parts:
                raise CompileError(
                    f"program {program.name} calls {name}, which is not in its unit",
                    "Include the header that has it.",
                )
            calls.append((base + at, name))
            if name not in starts and parts[name] not in waiting:
                waiting.append(parts[name])
    for at, name in calls:
        call = (_CALL, _PSEUDO_CALL, 0, starts[name] - at - 1)
        _INSTRUCTION.pack_into(code, at * _INSTRUCTION.size, *call)
    functions = tuple(
        Function(name, at, _size(sizes[_SIZE + name.removeprefix(_FUNCTION)]))
        for name, at in starts.items()
    )
    return Linked(program.name, bytes(code), tuple(relocations), tuple(kernel_reads), functions)


def _calls(piece: Piece, numbers: dict[int, str]) -> Iterator[tuple[int, str]]:
    """Where subprograms are called, and which."""
    wide = False
    for at, (opcode, registers, _, number) in enumerate(_INSTRUCTION.iter_unpack(piece.insns)):
        if not wide and opcode == _CALL and not registers and number in numbers:
            yield at, numbers[number]
        wide = not wide and opcode == _LOAD_WIDE


def _size(function: Piece) -> int:
    """What a function returns that returns a constant."""
    opcode, registers, _, number = _INSTRUCTION.unpack_from(function.insns)
    if opcode not in (_MOVE, _LOAD_WIDE) or registers:
        raise CompileError(f"{function.name} does not simply return a number")
    return int(number)
