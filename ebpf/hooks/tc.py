"""Programs on interfaces: by tcx link where the kernel has it, else as a clsact filter.

What is attached is pinned as links/IFNAME-DIRECTION: the link itself, or (clsact) the program that
our filter holds. links/IFNAME-qdisc marks a clsact qdisc that we created.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ebpf.errors import KernelError
from ebpf.hooks import clsact
from ebpf.hooks.clsact import Slot
from ebpf.kernel import bpffs, features, libbpf, syscall

DIRECTIONS = ("ingress", "egress")
# Others see backends: ours is the first program in, and the last out.
POSITIONS = {"ingress": "first", "egress": "last"}
_QDISC = "qdisc"


class Attachment(msgspec.Struct, frozen=True):
    """One direction of one interface. `ifindex` and `prog_id` are 0 when the interface is gone."""

    ifname: str
    ifindex: int
    direction: str
    mode: str  # "tcx" or "clsact"
    prog_id: int
    path: str


class Attacher:
    """Attaches to the interfaces of the network namespace it runs in."""

    def __init__(self, pin_dir: Path, mode: str | None = None, slot: Slot | None = None) -> None:
        """`mode` is "tcx" or "clsact"; without it the kernel decides."""
        self._directory = pin_dir / "links"
        self.mode = mode or ("tcx" if features.has_tcx() else "clsact")
        self.slot = slot or Slot()
        # Pins by interface index and direction, as far as this process knows, once it has looked:
        # a look at all of them for each interface would be a square.
        self._places: dict[tuple[int, str], Path] | None = None
        self._put: dict[tuple[int, str], int] = {}  # ids of the programs this process put there

    def attach(self, ifname: str, ifindex: int, direction: str, prog_fd: int) -> str:
        """Makes `prog_fd` run there. Returns what that took: "attached", "replaced" (another
        program of ours ran, and no packet missed it), "unchanged", or "restored": what this process
        put there before was gone, or another program was in its place.

        Raises KernelError; ENODEV when the interface went meanwhile.
        """
        path = self._path(ifname, direction)
        prog_id = int(libbpf.prog_info(prog_fd).id)
        current = self._current(path, ifname, ifindex, direction)
        found = current.prog_id if current else 0
        if current and current.mode == "tcx" and found != prog_id:
            _update(path, prog_fd, f"{direction} of {ifname}")
        elif found != prog_id:
            self._create(path, ifname, ifindex, direction, prog_fd, prog_id)
        place = (ifindex, direction)
        self._known()[place] = path
        before, self._put[place] = self._put.get(place), prog_id
        if found == prog_id:
            return "unchanged"
        if before is not None and found != before:
            return "restored"
        return "replaced" if found else "attached"

    def detach(self, ifname: str, direction: str) -> bool:
        """Removes what is attached there; False if nothing of ours was."""
        path = self._path(ifname, direction)
        found = self._read(path)
        if found is None:
            return False
        self._put.pop((found.ifindex, direction), None)
        if found.mode == "clsact":
            if found.ifindex:
                clsact.detach(found.ifindex, direction, self.slot)
            path.unlink()
            self._drop_qdisc(ifname, found.ifindex)
        else:
            # The pin holds the last reference: without it the kernel detaches, but only when all
            # users of the descriptor are gone, so that is asked for explicitly.
            libbpf.link_detach(str(path))
            path.unlink()
        return True

    def attachments(self) -> list[Attachment]:
        """Everything of this instance that is or was attached, by interface name."""
        found = (self._read(path) for path in self._pins())
        return [item for item in found if item is not None]

    def prune(self) -> list[str]:
        """Removes pins of interfaces that are gone; returns the interfaces' names."""
        return self._drop_dead(self.attachments())

    def forget(self, ifindexes: Iterable[int]) -> list[str]:
        """The same for these alone, which are gone."""
        known = self._known()
        keys = [(index, direction) for index in ifindexes for direction in DIRECTIONS]
        for key in keys:
            self._put.pop(key, None)
        paths = [known.pop(key) for key in keys if key in known]
        return self._drop_dead(item for path in paths if (item := self._read(path)))

    def _drop_dead(self, items: Iterable[Attachment]) -> list[str]:
        gone = []
        for item in items:
            if not item.ifindex:
                bpffs.unpin(Path(item.path))
                self._drop_qdisc(item.ifname, 0)
                gone.append(item.ifname)
        return sorted(set(gone))

    def detach_all(self) -> int:
        """Detaches everything of this instance; returns how many attachments there were."""
        found = self.attachments()
        for item in found:
            self.detach(item.ifname, item.direction)
        return len(found)

    def _create(
        self, path: Path, ifname: str, ifindex: int, direction: str, prog_fd: int, prog_id: int
    ) -> None:
        if self.mode == "tcx":
            link = syscall.tcx_link(prog_fd, ifindex, direction, POSITIONS[direction])
            try:
                bpffs.pin(link, path)
                if prog_id not in syscall.tcx_programs(ifindex, direction):
                    raise KernelError(
                        f"{direction} of {ifname} does not show the program just attached",
                        errno.EIO,
                    )
            finally:
                os.close(link)
        else:
            created = clsact.attach(ifindex, direction, prog_fd, prog_id, self.slot)
            if created:
                bpffs.pin(prog_fd, self._path(ifname, _QDISC))
            bpffs.pin(prog_fd, path)

    def _current(self, path: Path, ifname: str, ifindex: int, direction: str) -> Attachment | None:
        """What is attached to this very interface in our mode; leftovers of others are removed."""
        found = self._read(path)
        if found is None:
            found = self._renamed(path, ifindex, direction)
        if found is None:
            return None
        if found.ifindex != ifindex or not found.prog_id:
            # The name was another interface's, which is gone (or it has a new name by now).
            bpffs.unpin(path)
            return None
        if found.mode != self.mode:
            # Never both at once: a packet must not be translated twice.
            self.detach(ifname, direction)
            return None
        return found

    def _renamed(self, path: Path, ifindex: int, direction: str) -> Attachment | None:
        """An interface that was renamed after we attached: its pin takes the new name."""
        before = self._known().get((ifindex, direction))
        item = self._read(before) if before not in (None, path) else None
        if item is None or (item.ifindex, item.mode) != (ifindex, "tcx"):
            return None
        Path(item.path).rename(path)
        return self._read(path)

    def _known(self) -> dict[tuple[int, str], Path]:
        if self._places is None:
            found = self.attachments()
            self._places = {(i.ifindex, i.direction): Path(i.path) for i in found if i.ifindex}
        return self._places

    def _read(self, path: Path) -> Attachment | None:
        ifname, _, direction = path.name.rpartition("-")
        ifname = bpffs.name_of_pin(ifname)
        try:
            fd = libbpf.obj_get(str(path))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        try:
            if "prog" in os.readlink(f"/proc/self/fd/{fd}"):
                ifindex = _index(ifname)
                prog_id = ifindex and clsact.attached_program(ifindex, direction, self.slot)
                return Attachment(ifname, ifindex, direction, "clsact", prog_id, str(path))
            _, prog_id, ifindex, _ = syscall.link_info(fd)
        finally:
            os.close(fd)
        return Attachment(ifname, ifindex, direction, "tcx", prog_id if ifindex else 0, str(path))

    def _drop_qdisc(self, ifname: str, ifindex: int) -> None:
        """Removes a clsact qdisc that we created, once neither we nor others have filters there."""
        marker = self._path(ifname, _QDISC)
        if not marker.exists() or any(self._path(ifname, d).exists() for d in DIRECTIONS):
            return
        if ifindex:
            clsact.remove_qdisc(ifindex)
        marker.unlink()

    def _pins(self) -> Iterator[Path]:
        if self._directory.is_dir():
            for path in sorted(self._directory.iterdir()):
                if path.name.endswith(tuple(f"-{direction}" for direction in DIRECTIONS)):
                    yield path

    def _path(self, ifname: str, direction: str) -> Path:
        return self._directory / f"{bpffs.pin_name(ifname)}-{direction}"


def _update(path: Path, prog_fd: int, what: str) -> None:
    link = libbpf.obj_get(str(path))
    try:
        libbpf.link_update(link, prog_fd, what)
    finally:
        os.close(link)


def _index(ifname: str) -> int:
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0
