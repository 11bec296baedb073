"""The BPF file system: where pins live, how they are replaced, and who holds a directory."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from ebpf import trust
from ebpf.errors import KernelError, LbError, Locked, MissingFeature
from ebpf.kernel import libbpf

_MODE = 0o700  # of directories; names in there are read by agents and commands of root alone


def filesystem_of(path: Path) -> tuple[str, str]:
    """(mount point, type) of the mount that `path`, which need not exist, lies on."""
    best = ("/", "")
    wanted = os.path.realpath(path)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split(" ")
        mount = mount.encode().decode("unicode_escape")
        prefix = mount.rstrip("/") + "/"
        # Later lines cover earlier ones on the same mount point.
        if (wanted + "/").startswith(prefix) and len(mount) >= len(best[0]):
            best = (mount, kind)
    return best


def require(path: Path) -> None:
    """Raises MissingFeature unless `path` is inside a BPF file system."""
    mount, kind = filesystem_of(path)
    if kind != "bpf":
        raise MissingFeature(
            f"{path} is not in a BPF file system ({mount} is {kind or 'unknown'})",
            "Mount one: mount -t bpf bpf /sys/fs/bpf (in a container, mount the host's).",
        )


def mount(path: Path = Path("/sys/fs/bpf")) -> bool:
    """Mounts a BPF file system at `path` unless there is one; True if it was mounted now."""
    if filesystem_of(path)[1] == "bpf":
        return False
    # As systemd does it; without a mode everybody may make directories there.
    command = ["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingFeature(
            f"cannot mount a BPF file system at {path}: {done.stderr.strip()}",
            "This needs root; in a container, mount the host's /sys/fs/bpf into it.",
        )
    return True


def make_directory(path: Path) -> None:
    """Creates a directory for pins, with its parents below the mount; one that exists is closed to
    others. Raises Untrusted for one that others made or can write to."""
    require(path)
    try:
        trust.make_directory(path, _MODE)
    except OSError as error:
        hint = "Names in a BPF file system have no dots." if "." in str(path) else ""
        raise KernelError(f"cannot create {path}", error.errno or 0, hint) from error


def pin_name(name: str) -> str:
    """`name` as a file name in bpffs, which takes no dots (eth0.100 is a name of a device)."""
    return name.replace("%", "%25").replace(".", "%2E")


def name_of_pin(name: str) -> str:
    """The reverse of `pin_name`."""
    return name.replace("%2E", ".").replace("%25", "%")


def pin(fd: int, path: Path) -> None:
    """Pins; a pin that is there already is replaced in one step."""
    fresh = path.with_name(f"{path.name}~new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    libbpf.obj_pin(fd, str(fresh))
    fresh.rename(path)


def restore(fd: int, path: Path, id_of: Callable[[int], int]) -> bool:
    """Pins `fd` again if its pin is gone or leads to something else; returns whether that was so.
    `id_of` says by which number the kernel knows what a descriptor is of."""
    if _leads_to(path, id_of(fd), id_of):
        return False
    pin(fd, path)
    return True


def _leads_to(path: Path, number: int, id_of: Callable[[int], int]) -> bool:
    try:
        fd = libbpf.obj_get(str(path))
    except KernelError:
        return False
    try:
        return id_of(fd) == number
    except KernelError:  # of another kind
        return False
    finally:
        os.close(fd)


def unpin(path: Path) -> bool:
    """False if there was no such pin."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def remove_tree(path: Path) -> None:
    """Unpins everything below a directory, and removes it."""
    if not path.is_dir() or path.is_symlink():
        return
    for entry in list(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            remove_tree(entry)
        else:
            entry.unlink(missing_ok=True)
    path.rmdir()


class Lock:
    """Holds a directory with flock, until closed or the process ends, however it ends.

    Whoever can open a directory can hold it, so it should be one that `make_directory` made.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise KernelError(f"cannot open {path}", error.errno or 0) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = _holder(os.fstat(self._fd))
            os.close(self._fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise KernelError(f"cannot lock {path}", error.errno or 0) from error
            who = f"process {pid} ({_command(pid)})" if pid else "another process"
            raise Locked(
                f"{path} is in use by {who}", "One process at a time writes to a directory of pins."
            ) from error

    def holds(self, path: Path) -> bool:
        """Whether it is this directory that is held, and not one that was there before."""
        try:
            return os.path.samestat(os.fstat(self._fd), path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Lets go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder(path: Path) -> int:
    """The process that holds a `Lock` on `path`, 0 if none does or nothing is there.

    Read from /proc/locks: trying the lock would keep a writer that starts just now from it.
    """
    try:
        return _holder(path.stat())
    except OSError:
        return 0


def own_pid(pid: int) -> int:
    """What a process seen here as `pid` calls itself: in a container often 1. 0 if it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except OSError:
        return 0
    return pid


def _holder(stat: os.stat_result) -> int:
    inode = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        parts = line.split()
        if "FLOCK" in parts and "->" not in parts and inode in parts:
            return max(0, int(parts[parts.index(inode) - 1]))
    return 0


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "no longer there"


def absent(path: Path) -> LbError:
    """The error for a pin directory that is not there."""
    return LbError(f"there is no instance at {path}")
