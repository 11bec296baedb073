"""Waiting in tests, with a bound: for what happens in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable

BOUND = 20.0
_PAUSE = 0.02


def wait_until(
    what: Callable[[], object], seconds: float = BOUND, why: Callable[[], str] = str
) -> None:
    """Until `what` is true; a failure after `seconds` says `why`."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds:g} s: {why()}"
        time.sleep(_PAUSE)
