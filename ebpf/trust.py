"""Files and directories that can be believed: nobody but root, or this user, can have made them.

What lies in them decides where a node's traffic goes, so a name that others can put something at is
not opened. They may have been there first: a directory's name is all they need to know.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from ebpf.errors import Untrusted

_WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def flaw(path: Path) -> str:
    """How others may write to `path` or put something else in its place, as a sentence; empty if
    they cannot. Raises FileNotFoundError, and PermissionError for what this user may not see.

    Looks at every directory above it too. There a symbolic link may be, if its owner is trusted and
    where it leads as well; `path` itself must not be one.
    """
    if ".." in path.parts:
        return f"{path} goes up by '..'"
    return _flaw_on_the_way(Path(os.path.abspath(path)), last=True)


def _flaw_on_the_way(path: Path, last: bool) -> str:
    for part in (*reversed(path.parents), path):
        if found := _flaw_of(part, last and part == path):
            return found
    return ""


def _flaw_of(part: Path, last: bool) -> str:
    found = part.lstat()
    if found.st_uid not in (0, os.geteuid()):
        return f"{part} belongs to user {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        if last:
            return f"{part} is a symbolic link"
        return _flaw_on_the_way(Path(os.path.realpath(part)), last=False)
    # In /tmp, and in a BPF file system as `mount` makes it, everybody makes names and can rename
    # only their own.
    shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and not last
    if found.st_mode & _WRITTEN_BY_OTHERS and not shared:
        return f"{part} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


def check(path: Path) -> None:
    """Raises Untrusted unless `path` can be believed, or what is above it if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        if found := flaw(path):
            raise Untrusted(
                f"{path} cannot be trusted: {found}",
                "Somebody else may have made what is in it, or take its place. See who and why, "
                "then remove it, or chown it to root and chmod go-w.",
            )


def make_directory(path: Path, mode: int) -> None:
    """Makes a directory nobody else can write to, with what is missing above it, or takes the one
    that is there; it then has no more rights than `mode`.

    Raises Untrusted, OSError.
    """
    check(path)
    path = Path(os.path.abspath(path))
    for part in (*reversed(path.parents), path):
        if not os.path.lexists(part):
            check(part)  # which is not there: what is above it
            # Another process of ours may be at the same.
            with contextlib.suppress(FileExistsError):
                part.mkdir(mode)
    check(path)
    # Nobody else can exchange it any more.
    known = stat.S_IMODE(path.stat().st_mode)
    if known & ~mode:
        path.chmod(known & mode)


def read(path: Path) -> bytes:
    """A file's content. Raises OSError, and Untrusted unless nobody else can have written it."""
    check(path.parent)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        theirs = found.st_uid not in (0, os.geteuid()) or found.st_mode & _WRITTEN_BY_OTHERS
        if theirs or not stat.S_ISREG(found.st_mode):
            raise Untrusted(f"{path} cannot be trusted: others can write it, or it is no file")
        return stream.read()


def replace(path: Path, content: bytes, mode: int) -> None:
    """Puts a file in its place in one step, in a directory that `make_directory` made. Raises
    OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    # Left by a process of the same number that was killed.
    fresh.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, mode), "wb") as stream:
        stream.write(content)
    fresh.replace(path)
