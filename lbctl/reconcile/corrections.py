"""What was broken and is right again: counted by kind, and the last of it in words."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

import structlog

from lbctl.status import Audited

T = TypeVar("T")

_LATELY: Final = 20
_SOME: Final = 3  # named in one sentence


class Corrections:
    """Takes it down, for the status and the log."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lately: deque[str] = deque(maxlen=_LATELY)
        self._log = structlog.get_logger()
        self.answered = 0  # the last request that a whole pass followed

    def note(self, kind: str, what: Sequence[str], number: int = 0) -> None:
        """These were put right; `number` of them, if that is not how many are named."""
        number = number or len(what)
        named = ", ".join(what[:_SOME])
        if len(what) > _SOME:
            named += f" and {len(what) - _SOME} more"
        self._counts[kind] += number
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._lately.append(f"{stamp} {kind}: {named}")
        self._log.warning("corrected", kind=kind, what=named, count=number)

    def said(self) -> Audited:
        """For the status."""
        return Audited(self.answered, dict(self._counts), tuple(self._lately))


def pieces(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """So many of them at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
