"""`lbctl agent` with shorter bounds, and whose threads die by SIGUSR1: for tests of faults.

A thread notices when it does its next thing: a test has to give each something to do.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from types import FrameType

from lbctl.agent import conditions, routine
from lbctl.cli.main import main

BOUND_SECONDS = 2.0


def kill_threads(number: int, frame: FrameType | None) -> None:
    """All but this one, as `sys.exit` in one would."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
            )


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, kill_threads)
    routine.ROUTINE_SECONDS = 1.0
    for name in ("NODE_SECONDS", "SOURCE_SECONDS"):
        setattr(conditions, name, BOUND_SECONDS)
    main()
