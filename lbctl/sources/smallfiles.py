"""Reading files that others write: regular ones of bounded size, without ever waiting for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_bounded(path: Path, limit: int) -> bytes:
    """The content. Raises OSError, also for what is no file (a pipe would make us wait for whoever
    writes to it) and for more than `limit` bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(None, "is not a regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(None, f"has more than {limit:,} bytes", str(path))
    return data
