"""Programs on sockets: attached to a cgroup by link, for all processes in it and below.

A link is pinned as links/cgroup-HOOK. Links stay when the process that made them ends, and end with
their pin or with the cgroup.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ebpf.errors import KernelError, LbError, MissingFeature
from ebpf.kernel import bpffs, libbpf, syscall
from ebpf.layouts import SOCKET_HOOKS

_CALLS = ("connect", "sendmsg")
# In the order they are attached. Replies are named before calls are translated: nobody sees an
# answer from a stranger meanwhile.
HOOKS = tuple(sorted(SOCKET_HOOKS, key=lambda name: name.startswith(_CALLS)))
PREFIX = "cgroup-"
_PROGRAM = "sock_"
_LINK_TYPE_CGROUP = 3
_HYBRID = "unified"  # where version 2 is beside version 1, seen from /sys/fs/cgroup


class Hook(msgspec.Struct, frozen=True):
    """A pinned link. `cgroup_id` is the inode of the cgroup's directory, 0 when that is gone."""

    name: str
    prog_id: int
    cgroup_id: int
    path: str


def mounted(mountinfo: Path = Path("/proc/self/mountinfo")) -> list[tuple[Path, str]]:
    """Where cgroup version 2 is mounted, and which directory of the tree is the mount's root."""
    found = []
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            parts = before.split(" ")
            found.append((Path(parts[4]), parts[3]))
    return found


def root() -> Path:
    """The first mount of cgroup version 2. Raises MissingFeature."""
    found = mounted()
    if not found:
        raise MissingFeature("no cgroup2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
    return found[0][0]


class SocketAttacher:
    """The socket hooks of one instance."""

    def __init__(self, pin_dir: Path) -> None:
        self._directory = pin_dir / "links"

    def attach(self, programs: Mapping[str, int], cgroup: Path) -> bool:
        """Makes the programs named sock_HOOK (name to fd) run for `cgroup`.

        Old links of ours get the new programs one after the other; links to another cgroup are
        made anew. Returns whether anything changed. Raises KernelError, MissingFeature.
        """
        directory = _open(cgroup)
        try:
            cgroup_id = os.fstat(directory).st_ino
            known = {hook.name: hook for hook in self.hooks()}
            changed = False
            for name in HOOKS:
                fd = programs[_PROGRAM + name]
                changed |= self._attach(name, fd, directory, cgroup_id, known.get(name))
        finally:
            os.close(directory)
        return changed

    def hooks(self) -> list[Hook]:
        """What is pinned, in the order of `HOOKS`."""
        found = (self._read(name) for name in HOOKS)
        return [hook for hook in found if hook]

    def detach(self) -> int:
        """Detaches everything of this instance; returns how many hooks there were."""
        found = self.hooks()
        # Calls first: what was called by another name is answered by it to the end.
        for hook in sorted(found, key=lambda hook: not hook.name.startswith(_CALLS)):
            libbpf.link_detach(hook.path)
            bpffs.unpin(Path(hook.path))
        return len(found)

    def _attach(
        self, name: str, prog_fd: int, directory: int, cgroup_id: int, known: Hook | None
    ) -> bool:
        path = self._directory / (PREFIX + name)
        if known and known.cgroup_id == cgroup_id:
            if known.prog_id == libbpf.prog_info(prog_fd).id:
                return False
            link = libbpf.obj_get(str(path))
            try:
                libbpf.link_update(link, prog_fd, f"socket hook {name}")
            finally:
                os.close(link)
            return True
        if known:
            libbpf.link_detach(known.path)
        try:
            link = syscall.cgroup_link(prog_fd, directory, SOCKET_HOOKS[name][1])
        except KernelError as error:
            raise _explained(name, error) from error
        try:
            bpffs.pin(link, path)
        finally:
            os.close(link)
        return True

    def _read(self, name: str) -> Hook | None:
        path = self._directory / (PREFIX + name)
        try:
            fd = libbpf.obj_get(str(path))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            kind, prog_id, cgroup_id = syscall.cgroup_link_info(fd)
        finally:
            os.close(fd)
        if kind != _LINK_TYPE_CGROUP:
            raise LbError(
                f"{path} is a link of another kind ({kind})", "Something else pinned it there."
            )
        return Hook(name, prog_id, cgroup_id, str(path))


def missing_hooks() -> list[str]:
    """Names of the hooks whose kind of program this kernel does not load.

    Raises KernelError when loading is not allowed at all.
    """
    missing = []
    for name in HOOKS:
        kind, attach_type = SOCKET_HOOKS[name]
        try:
            os.close(libbpf.prog_load(kind, "lbctl_probe", _ALLOW, attach_type))
        except KernelError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
            missing.append(name)
    return missing


_ALLOW = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)


def _open(cgroup: Path) -> int:
    if (cgroup / _HYBRID).is_dir() and bpffs.filesystem_of(cgroup)[1] == "tmpfs":
        cgroup = cgroup / _HYBRID
    try:
        found = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"cannot open cgroup {cgroup}", error.errno or 0) from error
    kind = bpffs.filesystem_of(cgroup)[1]
    if kind != "cgroup2":
        os.close(found)
        raise MissingFeature(f"{cgroup} is no directory of cgroup2 ({kind or 'unknown'})")
    return found


def _explained(name: str, error: KernelError) -> LbError:
    """Why a link to a cgroup could not be made, as far as the number tells."""
    if error.errno == errno.EINVAL:
        return MissingFeature(
            f"this kernel has no socket hook {name}", "It needs CONFIG_CGROUP_BPF."
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = "Another program was attached to this cgroup or one above it without sharing it."
        return KernelError(f"cannot attach socket hook {name}", error.errno, hint)
    return error
