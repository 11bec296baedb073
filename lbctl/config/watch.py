"""Following the file behind --config while the agent runs."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from lbctl.config import file as configfile
from lbctl.config import settle
from lbctl.config.file import ConfigFile
from lbctl.config.settings import Settings
from lbctl.config.settle import Said
from lbctl.errors import ConfigError

POLL_SECONDS = 2.0


class FollowedFile:
    """Looks at the file now and then. A ConfigMap's file is a chain of symbolic links, of which the
    kubelet swaps one: what they lead to is compared, so no kind of replacement is missed."""

    def __init__(self, path: Path, flags: Said, started: Settings, file: ConfigFile) -> None:
        """`started` is what the agent was started with, from `file`."""
        self._path = path
        self._flags = flags
        self._started = self._current = self._before = started
        self._ignored = set(settle.ignored(file))
        self._seen = self._last = _identity(path)
        self._problem = ""
        self._next = 0.0
        self._log = structlog.get_logger()

    def due(self) -> float:
        """When `poll` has something to do, on the monotonic clock."""
        return self._next

    def poll(self, now: float) -> Settings | None:
        """The settings, if they changed in a way a running agent can take over."""
        if now < self._next:
            return None
        self._next = now + POLL_SECONDS
        identity = _identity(self._path)
        settled, self._last = identity == self._last, identity
        if identity == self._seen or not settled:
            return None  # somebody may still be writing it, and half a file can be a valid one
        try:
            file = configfile.read(self._path)
        except ConfigError as error:
            self._fault(f"{error.message}; the agent goes on with what it said before")
            return None
        self._seen = identity
        self._problem = ""
        try:
            found = settle.settle(self._flags, file)
        except ConfigError as error:
            self._refuse(error.message)
            return None
        return self._take(file, found)

    def problems(self) -> list[str]:
        """Sentences about the file: what is wrong with it, what needs a restart."""
        waiting = settle.waiting_for_restart(self._started, self._current)
        needed = f"--config {self._path}: a restart of the agent is needed for {', '.join(waiting)}"
        return [*filter(None, [self._problem]), *([needed] if waiting else [])]

    def refused(self, why: str) -> None:
        """The settings last given could not be used; those before hold again."""
        self._current = self._before
        self._refuse(why)

    def _refuse(self, why: str) -> None:
        self._fault(f"--config {self._path}: {why}; the agent goes on with what it said before")

    def _take(self, file: ConfigFile, found: Settings) -> Settings | None:
        fresh = set(settle.ignored(file)) - self._ignored
        if fresh:
            self._ignored |= fresh
            self._log.info("settings without effect here", fields=sorted(fresh))
        before, self._current = self._current, found
        self._before = before
        waiting = settle.waiting_for_restart(before, self._current)
        if waiting:
            self._log.warning("changed settings need a restart of the agent", fields=waiting)
        changed = settle.taken_over(before, self._current)
        if not changed:
            return None
        self._log.info("settings changed", fields=changed)
        return self._current

    def _fault(self, problem: str) -> None:
        if problem != self._problem:
            self._log.warning("settings cannot be used", why=problem)
        self._problem = problem


def _identity(path: Path) -> tuple[int, ...] | None:
    """Of the content, without reading it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
