"""Removing an instance: detaching its programs, then unpinning them and its maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ebpf import trust
from ebpf.errors import InUseError, LbError, MissingFeature
from ebpf.hooks.cgroup import SocketAttacher
from ebpf.hooks.tc import Attacher
from ebpf.hooks.xdp import DriverAttacher
from ebpf.kernel import bpffs
from lbctl import status
from lbctl.errors import NotFound

# What ebpf/instance.py and ebpf/programs.py pin; a directory with anything else is not ours.
_OURS = frozenset({"meta", "maps", "old", "programs", "links"})
_HALF_MADE = "~new"


class Found(msgspec.Struct, frozen=True):
    """What there is to remove: interfaces and socket hooks with programs of ours, names of maps."""

    interfaces: tuple[str, ...]
    maps: tuple[str, ...]
    sockets: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = ", ".join(self.interfaces) or "no interface"
        hooks = f"; {len(self.sockets)} socket hooks" if self.sockets else ""
        return f"programs on {where}{hooks}; {len(self.maps)} maps"


def survey(pin_dir: Path) -> Found:
    """What is at `pin_dir`. Raises NotFound, MissingFeature (not root), and LbError for a directory
    that is no instance."""
    try:
        entries = {path.name.removesuffix(_HALF_MADE) for path in pin_dir.iterdir()}
        bpffs.require(pin_dir)
        trust.check(pin_dir)
    except PermissionError as error:
        raise MissingFeature(f"{pin_dir} may not be read by this user", "Run as root.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no instance at {pin_dir}", "Nothing to remove.") from error
    if foreign := sorted(entries - _OURS):
        raise LbError(
            f"{pin_dir} is not an instance of lbctl: it holds {', '.join(foreign)}",
            "Nothing was removed. Name the instance's own directory with --pin-dir.",
        )
    maps = pin_dir / "maps"
    names = [path.name for path in maps.iterdir()] if maps.is_dir() else []
    attached = {item.ifname for item in Attacher(pin_dir).attachments() if item.prog_id}
    attached |= {item.ifname for item in DriverAttacher(pin_dir).attachments() if item.prog_id}
    hooks = tuple(hook.name for hook in SocketAttacher(pin_dir).hooks() if hook.cgroup_id)
    return Found(tuple(sorted(attached)), tuple(sorted(names)), hooks)


@contextlib.contextmanager
def exclusive(pin_dir: Path, *, force: bool) -> Iterator[None]:
    """Holds the instance, so that no agent starts meanwhile. Raises InUseError, naming the process
    that holds it; with `force` goes on without."""
    lock: bpffs.Lock | None = None
    try:
        lock = bpffs.Lock(pin_dir)
    except InUseError as error:
        if not force:
            hint = "Stop it first. --force removes it anyway, and that agent will stop working."
            raise InUseError(error.message, hint) from error
    try:
        yield
    finally:
        if lock:
            lock.close()


def remove(pin_dir: Path) -> None:
    """Detaches and unpins everything of the instance, and forgets what its agent said. Call within
    `exclusive`. Raises KernelError; what is left can be removed by another call."""
    SocketAttacher(pin_dir).detach()
    DriverAttacher(pin_dir).detach_all()
    attacher = Attacher(pin_dir)
    attacher.prune()
    attacher.detach_all()
    bpffs.remove_tree(pin_dir)
    status.remove(pin_dir)
