"""Errors for the person who reads them: what failed, and what can be done about it."""

from __future__ import annotations

import errno as errno_names
import os


class LbError(Exception):
    """Base of every error this project raises on purpose.

    `message` names the object and what happened to it, `hint` what the reader can do (may be
    empty), `exit_code` what the command line returns.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class CompileError(LbError):
    """The C programs did not become instructions."""


class Abandoned(LbError):
    """Something was not finished, since nobody waits for it any more."""


class LayoutError(LbError):
    """A pinned map is not what the code that opens it expects."""


class Damaged(LayoutError):
    """What is pinned is not what the instance's own notes say, or has none."""


class InUseError(LbError):
    """Another process holds what is wanted."""


class Locked(InUseError):
    """Another process holds this instance."""


class MissingFeature(LbError):
    """This kernel, container or machine lacks something that is needed."""


class Untrusted(LbError):
    """Others than root could have made what is at a path, or could take its place."""


class KernelError(LbError):
    """A system call failed. `errno` is its number; the message is already a sentence."""

    def __init__(self, what: str, errno: int, hint: str = "", said: bool = False) -> None:
        """`said`: `what` explains the number already."""
        name = errno_names.errorcode.get(errno, str(errno))
        message = what if said else f"{what}: {os.strerror(errno)} ({name})"
        super().__init__(message, hint or _HINTS.get(errno, ""))
        self.errno = errno


class MapFull(KernelError):
    """A map has no room. `limit` is the chosen number it is sized by, empty if by none."""

    def __init__(self, name: str, entries: int, limit: str = "") -> None:
        hint = f"Its size follows the limit of {limit}: a larger one is needed." if limit else ""
        super().__init__(
            f"map {name} is full: it has {entries} entries", errno_names.E2BIG, hint, said=True
        )
        self.map_name = name
        self.limit = limit


_HINTS = {
    errno_names.EPERM: "This needs root, or the capabilities CAP_BPF and CAP_NET_ADMIN.",
    errno_names.EACCES: "This needs root, or the capabilities CAP_BPF and CAP_NET_ADMIN.",
    errno_names.ENOSYS: "This kernel was built without the bpf() system call.",
    errno_names.ENOMEM: "The kernel had no memory for it; smaller tables need less.",
}
