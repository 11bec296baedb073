"""One program of several pieces: calls lead where they should, references move along."""

from __future__ import annotations

import struct

import pytest

from ebpf.compile.linker import Linked, Piece, link
from ebpf.errors import CompileError
from ebpf.kernel import functions
from ebpf.layouts import Function

ENUMS = {"SUBPROGRAM_FIRST": 1001, "SUBPROGRAM_SECOND": 1002, "PROGRAM_A4": 0}
INSTRUCTION = struct.Struct("=BBhi")
CALL, EXIT, MOVE, WIDE = 0x85, 0x95, 0xB7, 0x18


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(*one) for one in instructions)


def _call(number: int) -> tuple[int, int, int, int]:
    return (CALL, 0, 0, number)


END = (EXIT, 0, 0, 0)
NOTHING = (MOVE, 0, 0, 0)


def _piece(name: str, *instructions: tuple[int, int, int, int], map_at: int | None = None) -> Piece:
    references = ((map_at, "a_map"),) if map_at is not None else ()
    return Piece(name, _code(*instructions), references, ())


def _parts() -> list[Piece]:
    """`first` calls `second`."""
    return [
        _piece("sub_first", NOTHING, _call(-1002), END, map_at=0),
        _piece("size_first", (MOVE, 0, 0, 32), END),
        _piece("sub_second", NOTHING, END),
        _piece("size_second", (WIDE, 0, 0, 8), NOTHING, END),
    ]


def _targets(linked: Linked) -> dict[int, int]:
    """Where functions are called, and where that leads."""
    return {
        at: at + 1 + offset
        for at, (opcode, registers, _, offset) in enumerate(INSTRUCTION.iter_unpack(linked.insns))
        if opcode == CALL and registers == 1 << 4
    }


def test_what_calls_nothing_stays_as_it_is() -> None:
    program = _piece("one", _call(12), _call(-1), END)
    (linked,) = link([program, *_parts()], ENUMS)
    assert (linked.name, linked.insns, linked.functions) == ("one", program.insns, ())


def test_calls_lead_to_what_was_put_behind() -> None:
    program = _piece("one", _call(-1001), _call(-1002), _call(-1001), END, map_at=3)
    (linked,) = link([program, *_parts()], ENUMS)
    first, second = 4, 7
    assert linked.functions == (Function("sub_first", first, 32), Function("sub_second", second, 8))
    assert _targets(linked) == {0: first, 1: second, 2: first, 5: second}
    assert linked.relocations == ((3, "a_map"), (first, "a_map"))
    assert len(linked.insns) == 8 * (4 + 3 + 2)


def test_the_second_half_of_a_wide_instruction_is_no_call() -> None:
    program = _piece("one", (WIDE, 0, 0, 0), _call(-1001), END)
    (linked,) = link([program, *_parts()], ENUMS)
    assert not linked.functions


def test_a_missing_function_is_named() -> None:
    with pytest.raises(CompileError, match="program one calls sub_first"):
        link([_piece("one", _call(-1001), END)], ENUMS)


def test_a_size_that_is_no_number_is_refused() -> None:
    parts = _parts()
    parts[1] = _piece("size_first", END)
    with pytest.raises(CompileError, match="size_first"):
        link([_piece("one", _call(-1001), END), *parts], ENUMS)


def test_each_function_has_a_type() -> None:
    found = (Function("sub_first", 4, 32), Function("sub_second", 7, 8))
    types, infos = functions.describe("one", found)
    assert [at for at, _ in struct.iter_unpack("=II", infos)] == [0, 4, 7]
    assert b"\0sub_first\0" in types
    magic, _, _, head, _, size, strings_at, strings = struct.unpack_from("=HBBIIIII", types)
    assert (magic, size) == (0xEB9F, strings_at)
    assert len(types) == head + size + strings
