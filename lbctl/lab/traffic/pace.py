"""Makes requests at a steady rate from a few threads, until enough or told to stop."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lbctl.lab.traffic.report import Answer, Recorder

# Makes request number N and returns who answered; raises OSError if it failed.
Request = Callable[[int], Answer]


@dataclass(frozen=True)
class Pace:
    """`requests` in all and `seconds` at most (0: no such limit), `rate` per second.

    `threads` is how many requests may be under way at once: a request that waits for its timeout
    must not hold up the others.
    """

    requests: int
    seconds: float
    rate: float
    threads: int


def run(pace: Pace, make_request: Callable[[], Request], recorder: Recorder) -> None:
    """Call requests at that pace. SIGTERM and SIGINT end the run early.

    What is under way is finished. `make_request` is called once in each thread, for requests that
    share something.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print("started", file=sys.stderr, flush=True)  # from here on, a signal gets a report
    schedule = _Schedule(pace, stop)
    threads = [
        threading.Thread(target=_work, args=(schedule, make_request(), recorder))
        for _ in range(pace.threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        # Without a timeout, a signal would not be handled before the thread ends.
        while thread.is_alive():
            thread.join(0.2)


class _Schedule:
    """Hands out the numbers of requests, each at its time."""

    def __init__(self, pace: Pace, stop: threading.Event) -> None:
        self._pace = pace
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0
        self._start = time.monotonic()

    def take(self) -> int | None:
        """The next request's number once its time has come; None when there are no more."""
        with self._lock:
            number = self._next
            self._next += 1
        due = number / self._pace.rate
        if self._pace.requests and number >= self._pace.requests:
            return None
        if self._pace.seconds and due >= self._pace.seconds:
            return None
        if self._stop.wait(max(0.0, self._start + due - time.monotonic())):
            return None
        return number


def _work(schedule: _Schedule, request: Request, recorder: Recorder) -> None:
    while (number := schedule.take()) is not None:
        start = time.monotonic()
        try:
            answer = request(number)
        except OSError as error:
            recorder.failed(error)
        else:
            recorder.answered(answer, time.monotonic() - start)
