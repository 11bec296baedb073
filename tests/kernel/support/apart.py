"""A place of its own for what only tests compile.

Of what is compiled the last few are kept. Variants of the programs with a fault, and headers by
themselves, would push out what agents load, whose next one compiles for half a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ebpf.compile import compiler


@contextmanager
def kept_apart() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBCTL_CACHE_DIR", str(compiler.cache_dir() / "tests"))
        yield
