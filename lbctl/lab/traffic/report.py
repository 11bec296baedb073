"""What a client counted: printed as JSON by the client, read again by tests and the demo."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field

# A lost SYN is sent again after a second: slower than this means that something was lost.
SLOW_SECONDS = 0.9
NOTES = 20


@dataclass
class Report:
    """Counts of one client run. Times are in milliseconds, `seconds` is the whole run."""

    target: str = ""
    sent: int = 0
    ok: int = 0
    failures: dict[str, int] = field(default_factory=dict)  # by kind: refused, timeout, reset, …
    servers: dict[str, int] = field(default_factory=dict)  # answers by the server's name
    seen_as: dict[str, int] = field(default_factory=dict)  # the client's address, as servers saw it
    slow: int = 0  # answered, but only after SLOW_SECONDS
    max_ms: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # the first failures, with their time and text

    @property
    def lost(self) -> int:
        return self.sent - self.ok


@dataclass(frozen=True)
class Answer:
    """One answered request: who answered, and which client address it saw ("" if not told)."""

    server: str
    seen_as: str = ""


class Recorder:
    """Collects the outcome of requests from several threads."""

    def __init__(self, target: str) -> None:
        self._report = Report(target=target)
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def answered(self, answer: Answer, seconds: float) -> None:
        with self._lock:
            report = self._report
            report.sent += 1
            report.ok += 1
            report.slow += seconds >= SLOW_SECONDS
            report.max_ms = max(report.max_ms, round(seconds * 1000, 3))
            _count(report.servers, answer.server)
            if answer.seen_as:
                _count(report.seen_as, answer.seen_as)

    def failed(self, error: OSError) -> None:
        with self._lock:
            self._report.sent += 1
            kind = kind_of(error)
            _count(self._report.failures, kind)
            if len(self._report.notes) < NOTES:
                elapsed = time.monotonic() - self._start
                self._report.notes.append(f"{elapsed:.3f} s: {kind}: {error}")

    def finish(self) -> str:
        """The report as JSON."""
        report = self._report
        report.seconds = round(time.monotonic() - self._start, 3)
        return json.dumps(asdict(report))


class WrongAnswer(OSError):
    """An answer came, but not the one to the question."""


def kind_of(error: OSError) -> str:
    """One word for what became of a request."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "reset"
    if isinstance(error, WrongAnswer):
        return "wrong"
    return "unreachable"


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
