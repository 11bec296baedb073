"""The lab's cgroups: socket programs act by cgroup, so each simulated host has one of its own.

They also tell which processes belong to a lab: killing the cgroup ends them all, whoever started
them and whatever became of that process.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from ebpf.errors import LbError
from ebpf.hooks import cgroup

KILL_TIMEOUT = 30.0


def root_of(lab: str) -> Path:
    return cgroup.root() / f"lbctl-lab-{lab}"


def remove(root: Path) -> None:
    """Kill all processes in `root` and below and remove the cgroups; no error if there are none."""
    if not root.is_dir():
        return
    deadline = time.monotonic() + KILL_TIMEOUT
    (root / "cgroup.kill").write_text("1")
    # A killed process leaves its cgroup a moment later; until then rmdir says EBUSY.
    while not _remove_tree(root):
        if time.monotonic() > deadline:
            raise LbError(f"processes in {root} do not end", f"See {root}/cgroup.procs.")
        time.sleep(0.01)


def _remove_tree(root: Path) -> bool:
    """Remove `root` and all below, children first; False if one is still busy."""
    done = True
    for directory, _, _ in os.walk(root, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            done = False
    return done
