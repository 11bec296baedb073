"""Programs inside the lab: how they are started, and whether they still run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lbctl.lab import namespace

# Joins the cgroup, then becomes the program: the shell and nsenter replace themselves, so the
# process id is the program's, and its exit code and signals need nobody in between.
_LAUNCH = 'echo $$ >"$1/cgroup.procs" && net=$2 && shift 2 && exec nsenter --net="$net" -- "$@"'


def command_in(name: str, cgroup: Path, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in network namespace `name` and in `cgroup`."""
    return ["sh", "-c", _LAUNCH, "sh", str(cgroup), str(namespace.path_of(name)), *argv]


class ProcessId(msgspec.Struct, frozen=True):
    """A process that can be recognised again: ids are reused, start times (clock ticks) tell."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(pid, _started(pid) or 0)

    @property
    def running(self) -> bool:
        return self.started != 0 and _started(self.pid) == self.started

    def kill(self, signal_number: int = signal.SIGKILL, timeout: float = 5.0) -> bool:
        """Send a signal and wait for the end; False if that takes more than `timeout` seconds."""
        if self.running:
            os.kill(self.pid, signal_number)
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def _started(pid: int) -> int | None:
    """Start time of a living process; None if there is none or only its exit code is left."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name is in parentheses and may contain anything: count from its end.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])
