"""Looks all the time whether somebody broke something, a little at a time, and puts it right.

Maps: lbctl/reconcile/audit.py. Here: pins, the `config` record, socket hooks; and what others keep
(interfaces, threads) is counted with it. Between changes only: what is about to be written anyway
is not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import structlog

from ebpf.errors import LbError
from ebpf.kernel import features
from lbctl import status
from lbctl.agent.control import Control
from lbctl.agent.parts import Parts

PASS_SECONDS: Final = 2.0  # between two passes
_SHARE: Final = 99  # times as long as it worked it rests: one percent of a processor
_LEAST_REST: Final = 0.01
_MOST_REST: Final = 0.5
_ASKED: Final = "asked"
MASK: Final = "audit"  # LBCTL_MASK=audit: nobody looks; for tests that write what the agent has


class Auditing:
    """One step after the other, each below a millisecond."""

    def __init__(self, parts: Parts, control: Control) -> None:
        self._parts = parts
        self._control = control
        self._audit = parts.reconciler.audit
        self._corrections = parts.reconciler.audit.corrections
        self._beside: Iterator[Callable[[], None]] | None = None  # left of this pass
        self._asked = _asked(parts)  # by whom was before this agent
        self._answering = self._asked
        self._corrections.answered = self._asked
        self._counted = self._counts()
        self._next = 0.0
        self._masked = MASK in features.masked()
        self._problem = ""  # that was logged last
        self._log = structlog.get_logger()

    def due(self) -> float | None:
        """When `step` has something to do, on the monotonic clock."""
        return self._next if self._parts.reconciler.at_rest and not self._masked else None

    def step(self, now: float) -> None:
        """Look at a little more."""
        began = time.perf_counter()
        try:
            ended = self._go_on(now)
        except LbError as error:
            if error.message != self._problem:
                self._log.warning("the audit was interrupted by an error", error=error.message)
            self._problem = error.message
            ended = True
        if ended:
            self._begin()
        rest = _SHARE * (time.perf_counter() - began)
        rest = PASS_SECONDS if ended else min(max(rest, _LEAST_REST), _MOST_REST)
        self._next = time.monotonic() + rest

    def _go_on(self, now: float) -> bool:
        """Returns whether everything was looked at once more."""
        if self._beside is None:
            ended, wrong = self._audit.step(self._parts.reconciler)
            if wrong:
                self._control.put_right(now)
            if ended:
                self._beside = iter(self._others())
            return False
        look = next(self._beside, None)
        if look is not None:
            look()
        return look is None

    def _begin(self) -> None:
        """All of it is done: who asked before it began has the answer now."""
        self._beside = None
        self._corrections.answered = self._answering
        self._answering = _asked(self._parts)
        if self._answering != self._asked:
            self._asked = self._answering
            self._parts.interfaces.refresh()
            self._parts.source.read_again()

    def _others(self) -> list[Callable[[], None]]:
        sockets = self._parts.sockets.refresh
        parts = [self._pins, self._program_pins, self._calls]
        return [*parts, self._config, sockets, self._kept]

    def _pins(self) -> None:
        if restored := self._parts.instance.restore_pins():
            self._corrections.note("pin", restored)

    def _program_pins(self) -> None:
        if restored := self._parts.programs.restore_pins():
            self._corrections.note("pin", restored)

    def _calls(self) -> None:
        if restored := self._parts.programs.restore_calls():
            self._corrections.note("program", restored)

    def _config(self) -> None:
        if wrong := self._control.restore_config():
            self._corrections.note("config", wrong)

    def _kept(self) -> None:
        """What other parts put right by themselves."""
        now, before = self._counts(), self._counted
        self._counted = now
        for kind, count in now.items():
            if count > before[kind]:
                self._corrections.note(kind, self._names(kind), count - before[kind])

    def _names(self, kind: str) -> Sequence[str]:
        if kind == "interface":
            return self._parts.interfaces.repaired
        return ["attached again" if kind == "socket hook" else "begun anew"]

    def _counts(self) -> dict[str, int]:
        parts = self._parts
        return {
            "interface": parts.interfaces.repairs,
            "socket hook": parts.sockets.repairs,
            "watch": parts.source.status().restarts,
            "thread": parts.keeper.restarts,
        }


def _asked(parts: Parts) -> int:
    """The number of the last request for a pass: see `lbctl verify --repair`."""
    content = status.read_beside(parts.instance.pin_dir, _ASKED)
    return int(content) if content and content.strip().isdigit() else 0
