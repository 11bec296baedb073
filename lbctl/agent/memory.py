"""The process's own memory: little is taken for the first sync, and what it leaves goes back."""

import ctypes
import gc
from typing import Final

# Of glibc's malloc.h.
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_LARGE = 128 << 10


def prepare() -> None:
    """Before threads start: no collections, since nearly everything that is made will stay, and one
    heap for all threads, since what one of them frees another one takes. Large blocks keep to maps
    of their own: a sweep's arrays would else stay with the heap."""
    gc.disable()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGE)


def settle() -> None:
    """After the first sync: what lives now lives long, so no later collection looks at it, which
    would delay changes; and what is free is given back."""
    gc.collect()
    gc.freeze()
    gc.enable()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
