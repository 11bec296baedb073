"""Programs at devices' drivers (XDP), by link, in native mode alone.

A link is pinned as links/IFNAME-xdp. One program runs at a driver: another's is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ebpf.errors import KernelError, LbError
from ebpf.kernel import bpffs, libbpf, netlink, syscall

_SUFFIX = "-xdp"


class Attachment(msgspec.Struct, frozen=True):
    """A pinned link. `ifindex` and `prog_id` are 0 when it leads to no device any more."""

    ifname: str
    ifindex: int
    prog_id: int
    path: str


class DriverAttacher:
    """Attaches to the devices of the network namespace it runs in."""

    def __init__(self, pin_dir: Path) -> None:
        self._directory = pin_dir / "links"

    def attach(self, ifname: str, ifindex: int, prog_fd: int) -> str:
        """Makes `prog_fd` run there. Returns what that took: "attached", "replaced" (another
        program of ours ran, and no packet missed it), or "unchanged".

        Raises KernelError: EBUSY if another's program is there, EOPNOTSUPP if the driver has no
        native mode, ENODEV when the device went meanwhile.
        """
        path = self._path(ifname)
        current = self._current(path, ifindex)
        if current is None:
            self._create(path, ifname, ifindex, prog_fd)
            return "attached"
        if current.prog_id == libbpf.prog_id(prog_fd):
            return "unchanged"
        link = libbpf.obj_get(str(path))
        try:
            libbpf.link_update(link, prog_fd, f"the driver of {ifname}")
        finally:
            os.close(link)
        return "replaced"

    def detach(self, ifname: str) -> bool:
        """Removes what is attached there; False if nothing of ours was."""
        path = self._path(ifname)
        if self._read(path) is None:
            return False
        libbpf.link_detach(str(path))
        bpffs.unpin(path)
        return True

    def attachments(self) -> list[Attachment]:
        """Everything of this instance that is or was attached, by name of the device."""
        found = (self._read(path) for path in self._pins())
        return [item for item in found if item is not None]

    def detach_all(self) -> int:
        """Detaches everything of this instance; returns how many attachments there were."""
        found = self.attachments()
        for item in found:
            self.detach(item.ifname)
        return len(found)

    def _create(self, path: Path, ifname: str, ifindex: int, prog_fd: int) -> None:
        try:
            link = syscall.xdp_link(prog_fd, ifindex)
        except KernelError as error:
            if error.errno == errno.EBUSY:
                raise KernelError(f"{ifname} has {occupant(ifindex)}", errno.EBUSY) from error
            raise
        try:
            bpffs.pin(link, path)
        finally:
            os.close(link)

    def _current(self, path: Path, ifindex: int) -> Attachment | None:
        """What is attached to this very device; leftovers of others are removed. A device that was
        renamed after we attached takes its pin along."""
        found = self._read(path)
        if found and found.ifindex == ifindex and found.prog_id:
            return found
        if found:
            bpffs.unpin(path)
        for other in self.attachments():
            if other.ifindex == ifindex and other.prog_id:
                Path(other.path).rename(path)
                return self._read(path)
        return None

    def _read(self, path: Path) -> Attachment | None:
        ifname = bpffs.name_of_pin(path.name.removesuffix(_SUFFIX))
        try:
            fd = libbpf.obj_get(str(path))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            prog_id, ifindex = syscall.xdp_link_info(fd)
        finally:
            os.close(fd)
        return Attachment(ifname, ifindex, prog_id if ifindex else 0, str(path))

    def _pins(self) -> Iterator[Path]:
        if self._directory.is_dir():
            for path in sorted(self._directory.iterdir()):
                if path.name.endswith(_SUFFIX):
                    yield path

    def _path(self, ifname: str) -> Path:
        return self._directory / f"{bpffs.pin_name(ifname)}{_SUFFIX}"


def occupant(ifindex: int) -> str:
    """Words for the XDP program that a device has. Raises nothing: it is for a message."""
    with contextlib.suppress(LbError, OSError):
        for prog_id in _programs(ifindex):
            fd = syscall.program(prog_id)
            try:
                name = libbpf.prog_info(fd).name.decode(errors="replace")
            finally:
                os.close(fd)
            return f"another XDP program, {name or 'without name'} (id {prog_id})"
    return "another XDP program"


def _programs(ifindex: int) -> list[int]:
    with netlink.rtnetlink() as route:
        for message in route.get_links(ifindex):
            about = message.get_attr("IFLA_XDP")
            return [about.get_attr("IFLA_XDP_PROG_ID") or 0] if about else []
    return []
