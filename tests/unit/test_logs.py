"""What is logged: constant messages that can be searched for, what varies in keys of one style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "lbctl").rglob("*.py"), *(ROOT / "ebpf").rglob("*.py")])
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
KEY = re.compile(r"[a-z][a-zA-Z0-9]*")
MESSAGE = re.compile(r"[a-zA-Z].*[^.!:]")


class Logged(NamedTuple):
    """A call of a logger; `level` is bind where it only says what others have in common."""

    where: str
    level: str
    call: ast.Call
    constants: dict[str, ast.expr]  # of the module

    @property
    def message(self) -> str | None:
        """None if it is no constant."""
        if not self.call.args:
            return None
        first = self.call.args[0]
        if isinstance(first, ast.Name):
            first = self.constants.get(first.id, first)
        is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
        return str(first.value) if is_text and isinstance(first, ast.Constant) else None


def logged() -> Iterator[Logged]:
    for path in FILES:
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                level = node.func.attr
                if level in LEVELS | {"bind"} and is_logger(node.func.value):
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield Logged(where, level, node, constants)


def is_logger(node: ast.expr) -> bool:
    """`log`, `self._log`, or the call that makes one."""
    if isinstance(node, ast.Call):
        node = node.func
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("log", "_log", "get_logger")


CALLS = [*logged()]


def test_the_calls_are_found() -> None:
    assert len(CALLS) > 60
    assert {"info", "warning", "error", "exception", "debug", "bind"} <= {c.level for c in CALLS}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_messages_are_constant_and_keys_are_camel_case(call: Logged) -> None:
    if call.level != "bind":
        assert len(call.call.args) == 1, "what varies belongs into keys"
        assert call.message, "a message that varies cannot be searched for"
        assert MESSAGE.fullmatch(call.message)
        assert "%" not in call.message
        assert "{" not in call.message
    keys = [keyword.arg for keyword in call.call.keywords]
    assert [key for key in keys if key is not None and not KEY.fullmatch(key)] == []


def test_what_a_logger_always_has_is_not_said_again() -> None:
    """`event`, `level` and `timestamp` are structlog's own keys."""
    keys = {keyword.arg for call in CALLS for keyword in call.call.keywords}
    assert not keys & {"event", "level", "timestamp", "message"}
