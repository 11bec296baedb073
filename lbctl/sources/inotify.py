"""Inotify through libc: which names in one directory changed."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from lbctl.errors import SourceError

CREATE = 0x100
CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLYDIR = 0x1000000
_MASK = CREATE | CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _MOVE_SELF

_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


class DirectoryWatch:
    """Changes in one directory. `fileno()` is readable when there are some."""

    def __init__(self, directory: Path) -> None:
        """Raises SourceError if the directory cannot be watched."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _failed(directory)
        if libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK | _ONLYDIR) < 0:
            error = _failed(directory)
            self.close()
            raise error

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> tuple[dict[str, int], bool]:
        """Names with what happened to them (bits), and whether the watch still holds: not if the
        directory itself went, or if the kernel had to drop events."""
        names: dict[str, int] = {}
        holds = True
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return names, holds
            at = 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
                at += length
                if mask & (_OVERFLOW | _IGNORED | _DELETE_SELF | _MOVE_SELF):
                    holds = False
                elif name:
                    names[name] = names.get(name, 0) | mask


def _failed(directory: Path) -> SourceError:
    reason = os.strerror(ctypes.get_errno())
    return SourceError(
        f"{directory} cannot be watched for changes: {reason}",
        hint="If inotify's limits are exhausted, raise the sysctl fs.inotify.max_user_instances.",
    )
