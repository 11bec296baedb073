"""Ctrl-C: an exception for who has something to put in order, else the end at once.

Python raises it wherever it is. In the middle of an import nobody can catch that, or it is lost in
a callback of Python's own; either shows a traceback.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

EXIT_CODE = 130
Handler = Callable[[int, FrameType | None], None]


def begin() -> None:
    """From now on it ends the process at once, but within `raised`. For the command line alone; and
    not where the signal is ignored, as in what a shell runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raised() -> AbstractContextManager[None]:
    """KeyboardInterrupt meanwhile: somebody catches it. Changes nothing without `begin`."""
    return _instead(_end, _raise)


def importing() -> AbstractContextManager[None]:
    """The end at once again, within `raised`: nothing has begun yet."""
    return _instead(_raise, _end)


@contextmanager
def _instead(of: Handler, handler: Handler) -> Iterator[None]:
    if signal.getsignal(signal.SIGINT) is not of:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, of)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)
