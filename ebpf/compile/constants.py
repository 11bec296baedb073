"""The numbers of consts.h for Python: enumerators and `#define NAME integer-expression`.

Evaluated here, since bcc does not list them, and then proved: `assertions()` is compiled after the
source, so a value the C compiler sees otherwise is a compile error and never a wrong number.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from ebpf.errors import CompileError

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ENUM = re.compile(r"\benum\b\s*\w*\s*\{([^}]*)\}", re.DOTALL)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+([A-Za-z_]\w*)[ \t]+(\S.*)$", re.MULTILINE)
_SUFFIX = re.compile(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b")

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}


def constants(text: str) -> dict[str, int]:
    """Name to value, in order of appearance in each kind: defines first, then enumerators.

    Defines that are not integer expressions (macros with arguments, text) are left out; an
    enumerator that cannot be evaluated raises CompileError.
    """
    text = _COMMENT.sub("", text).replace("\\\n", " ")
    known: dict[str, int] = {}
    for name, expression in _DEFINE.findall(text):
        value = _evaluate(expression, known)
        if value is not None:
            known[name] = value
    for body in _ENUM.findall(text):
        following = 0
        for part in filter(None, (piece.strip() for piece in body.split(","))):
            name, _, expression = (piece.strip() for piece in part.partition("="))
            value = _evaluate(expression, known) if expression else following
            if value is None:
                raise CompileError(f"the value of enumerator {name} ({expression}) is not a number")
            known[name] = value
            following = value + 1
    return known


def assertions(values: dict[str, int]) -> str:
    """C that fails to compile unless the compiler sees the same values."""
    lines = ['#line 1 "constants as Python reads them"']
    for name, value in values.items():
        number = f"{value & (2**64 - 1):#x}ULL"
        lines.append(f'_Static_assert((unsigned long long)({name}) == {number}, "{name}");')
    return "\n".join(lines) + "\n"


def _evaluate(expression: str, known: dict[str, int]) -> int | None:
    plain = _SUFFIX.sub(r"\1", expression.strip()).replace("/", "//")
    try:
        return _value(ast.parse(plain, mode="eval").body, known)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr, known: dict[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left, known), _value(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known)
    raise ValueError("not an integer expression")
