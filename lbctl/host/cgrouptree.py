"""What the mounted cgroup tree says of this process: how much of the tree it is, and what memory
there is."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def is_whole(mount: Path) -> bool:
    """Whether a mount of cgroup2 begins at the root of the tree, which alone has no type. The root
    that mountinfo shows says it only to who is in the first cgroup namespace."""
    return not (mount / "cgroup.type").exists()


def memory_limit(mount: Path) -> int | None:
    """Bytes that this process may use by its own cgroup and those above it, as far as they are
    mounted; None if nothing there limits them."""
    directory = _own_directory(mount)
    if directory is None:
        return None
    within = [directory, *directory.parents]
    limits = [_limit(each) for each in within[: within.index(mount) + 1]]
    return min((limit for limit in limits if limit is not None), default=None)


def _own_directory(mount: Path) -> Path | None:
    """Found by who is in it: in a cgroup namespace of its own a process reads that it is at `/`,
    though the host's whole tree may be mounted, as deploy/ does."""
    own = str(os.getpid())
    for directory, _, _ in os.walk(mount):
        # Of a threaded cgroup they cannot be read; others end meanwhile.
        with contextlib.suppress(OSError):
            if own in Path(directory, "cgroup.procs").read_text().split():
                return Path(directory)
    return None


def _limit(directory: Path) -> int | None:
    try:
        text = (directory / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)
