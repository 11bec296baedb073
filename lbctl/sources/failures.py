"""Saying that something fails, without saying it at every attempt."""

from __future__ import annotations

import time

import structlog

REPEAT_SECONDS = 60.0


class FailureLog:
    """Logs the first of a row of failures, then one a minute, and the end of the row."""

    def __init__(self, **context: str) -> None:
        self._log = structlog.get_logger().bind(**context)
        self._count = 0
        self._last_said = 0.0

    def failed(self, error: str) -> None:
        """It did not work, again or for the first time."""
        self._count += 1
        now = time.monotonic()
        if self._count == 1 or now - self._last_said >= REPEAT_SECONDS:
            self._last_said = now
            self._log.warning(
                "source is not available, keeping what is known",
                error=error,
                attempts=self._count,
            )

    def worked(self) -> None:
        """It works, again or still."""
        if self._count:
            self._log.info("source is available again", attempts=self._count)
            self._count = 0
