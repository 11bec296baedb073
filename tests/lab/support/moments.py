"""Events of before and after: told apart by when they were, since they are told when they are."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

QUIET = 0.5  # seconds; the clock of events and Python's are a tenth of one apart


def pause() -> datetime:
    """A moment with quiet before and after it."""
    time.sleep(QUIET)
    found = datetime.now(UTC)
    time.sleep(QUIET)
    return found


def since(moment: datetime, events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that have a time, and were later."""
    return [
        event
        for event in events
        if "time" in event and datetime.fromisoformat(event["time"]) > moment
    ]
