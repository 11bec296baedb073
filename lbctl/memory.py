"""The process's own memory: little is taken for the first sync, and what it leaves goes back."""

import ctypes
import gc
from typing import Final

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's malloc.h


def prepare() -> None:
    """Before threads start: no collections, since nearly everything that is made will stay, and one
    heap for all threads, since what one of them frees another one takes."""
    gc.disable()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)


def settle() -> None:
    """After the first sync: what lives now lives long, so no later collection looks at it, which
    would delay changes; and what is free is given back."""
    gc.collect()
    gc.freeze()
    gc.enable()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
