"""What is logged: constant messages that can be searched for, what varies in keys of one style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lbctl.troubles import KINDS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "lbctl").rglob("*.py"), *(ROOT / "ebpf").rglob("*.py")])
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
KEY = re.compile(r"[a-z][a-zA-Z0-9]*")
MESSAGE = re.compile(r"[a-zA-Z].*[^.!:]")


# How `lbctl status` says, while it holds, what a warning or error says when it begins: by a kind of
# lbctl/troubles.py. What is over when it is logged is a moment.
MOMENT = "moment"
HELD = {
    "missing programs are attached again": "removed",
    "cannot attach": "interface",
    "cannot look at what is attached": "attachments",
    "cannot detach": "attachments",
    "cannot replace a driver's program": MOMENT,
    "cannot look at drivers' programs": "attachments",
    "cannot remove a driver's program": "attachments",
    "cannot tidy the pins of links": "attachments",
    "a change could not be computed": "maps",
    "events cannot be written": "events",
    "a part of the agent failed": "thread",
    "cannot write the status file": "status",
    "source ports cannot be reserved": "reserved-ports",
    "compiled programs are not cached": "cache",
    "no socket hooks": "sockets",
    "sockets of endpoints that are gone stay open": "stale-sockets",
    "cannot remove the entry of a closed socket": MOMENT,
    "changed settings need a restart of the agent": "settings",
    "settings cannot be used": "settings",
    "work of a thread is given up": "thread",
    "work of a thread ended by an error": "thread",
    "cannot accept": MOMENT,
    "cannot listen": "listening",
    "a page could not be built": MOMENT,
    "the sweep failed": "sweep",
    "a map is nearly full": "room",
    "cannot write": "maps",
    "a service is not served as its object says": "services",
    "repairing what an earlier agent left": MOMENT,
    # Of credentials, the first that matters is a refusal.
    "no credentials for the API server": "source",
    "ca.crt holds no certificate: no server is trusted": "source",
    "credentials cannot be read": "source",
    "credentials cannot be read, keeping the last": "source",
    "source is not available, keeping what is known": "source",
    "a list lacks most known objects, listing again before it counts": MOMENT,
    "manifest cannot be used, keeping its last contents": "objects",
    "manifest has errors, the rest of it is used": "objects",
    "object skipped, the others are kept": "objects",
    "part of an object skipped, the rest of it is used": "objects",
    "thread is replaced": "thread",
    "tables do not grow": "growth",
    "nobody can listen to events": "listeners",
    "counts of live flows were wrong": MOMENT,
    "corrected": MOMENT,
    "cannot write the file of what the agent uses": MOMENT,
    "the audit was interrupted by an error": MOMENT,
    "thread ended by an error": "thread",
}


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


def test_what_is_warned_of_is_in_status_while_it_holds() -> None:
    warned = {call.message for call in CALLS if call.level in ("warning", "error", "exception")}
    assert warned == {*HELD}, "say in HELD how lbctl status shows it"
    assert {*HELD.values()} - {MOMENT} <= {*KINDS}


def test_every_kind_is_said_by_somebody() -> None:
    text = "".join(
        (ROOT / "lbctl" / name).read_text()
        for name in ("agent/report.py", "agent/conditions.py", "reconcile/notes.py")
    )
    assert [kind for kind in KINDS if f'"{kind}"' not in text] == []
