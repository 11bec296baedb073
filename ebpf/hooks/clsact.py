"""Attaching as a clsact `bpf` filter: for kernels before 6.6, which have no tcx."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from ebpf.errors import InUseError, KernelError

NAME = "lbctl"
PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_CLSACT_HANDLE = 0xFFFF0000
_BPF_ID = 11


class Slot(msgspec.Struct, frozen=True):
    """Where our filter sits. Lower priorities run first: 1 is first at ingress. At egress others
    shall see backends, so ours runs after them (the kernel itself numbers from 49152 down)."""

    ingress_priority: int = 1
    egress_priority: int = 65000
    handle: int = 0x1B

    def priority(self, direction: str) -> int:
        return self.ingress_priority if direction == "ingress" else self.egress_priority


class Filter(msgspec.Struct, frozen=True):
    """One filter as the kernel lists it; name and program id are empty for other kinds."""

    kind: str
    priority: int
    handle: int
    name: str
    prog_id: int


def attach(ifindex: int, direction: str, prog_fd: int, prog_id: int, slot: Slot) -> bool:
    """Puts our filter there, or another program into it; True if the clsact qdisc is new too.

    Raises InUseError if the slot holds a filter that is not ours, KernelError (ENODEV: the
    interface is gone).
    """
    with _netlink() as netlink, _explained(f"cannot attach to {direction} of interface {ifindex}"):
        created = False
        if not _has_clsact(netlink, ifindex):
            netlink.tc("add", "clsact", ifindex)
            created = True
        mine = _in_slot(_filters(netlink, ifindex, direction), direction, slot)
        if mine and mine.name != NAME:
            raise InUseError(
                f"{direction} of interface {ifindex} has another's filter ({mine.kind} "
                f"{mine.name}) at priority {mine.priority}, handle {mine.handle:#x}",
                "Choose another priority or handle in the configuration.",
            )
        netlink.tc(
            "replace-filter",
            "bpf",
            ifindex,
            handle=slot.handle,
            parent=PARENTS[direction],
            prio=slot.priority(direction),
            fd=prog_fd,
            name=NAME,
            direct_action=True,
        )
        found = _in_slot(_filters(netlink, ifindex, direction), direction, slot)
        if found is None or found.prog_id != prog_id:
            raise KernelError(
                f"{direction} of interface {ifindex} does not show the filter just attached",
                errno.EIO,
            )
        return created


def detach(ifindex: int, direction: str, slot: Slot) -> bool:
    """Removes our filter, and nobody else's; False if there was none."""
    with _netlink() as netlink, _explained(f"cannot detach from interface {ifindex}"):
        if not _has_clsact(netlink, ifindex):
            return False
        mine = _in_slot(_filters(netlink, ifindex, direction), direction, slot)
        if mine is None or mine.name != NAME:
            return False
        netlink.tc(
            "del-filter",
            "bpf",
            ifindex,
            handle=slot.handle,
            parent=PARENTS[direction],
            prio=slot.priority(direction),
        )
        return True


def remove_qdisc(ifindex: int) -> bool:
    """Removes the clsact qdisc if no filter uses it; False if one does."""
    with _netlink() as netlink, _explained(f"cannot remove clsact from interface {ifindex}"):
        if not _has_clsact(netlink, ifindex):
            return False
        if any(_filters(netlink, ifindex, direction) for direction in PARENTS):
            return False
        netlink.tc("del", "clsact", ifindex)
        return True


def filters(ifindex: int, direction: str) -> list[Filter]:
    """All filters of one direction, in the order they run."""
    with _netlink() as netlink, _explained(f"cannot list the filters of interface {ifindex}"):
        return _filters(netlink, ifindex, direction) if _has_clsact(netlink, ifindex) else []


def attached_program(ifindex: int, direction: str, slot: Slot) -> int:
    """Id of the program in our filter, or 0."""
    mine = _in_slot(filters(ifindex, direction), direction, slot)
    return mine.prog_id if mine and mine.name == NAME else 0


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    # Imported here: pyroute2 costs 0.3 s, and where tcx is used nobody needs it for attaching.
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        yield netlink


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise KernelError(what, error.code) from error


def _has_clsact(netlink: Any, ifindex: int) -> bool:
    for qdisc in netlink.get_qdiscs(ifindex):
        if qdisc["handle"] == _CLSACT_HANDLE:
            kind = qdisc.get_attr("TCA_KIND")
            if kind != "clsact":
                raise InUseError(
                    f"interface {ifindex} has a qdisc of kind {kind} where clsact goes",
                    "It belongs to another program, and only one of the two can be there.",
                )
            return True
    return False


def _filters(netlink: Any, ifindex: int, direction: str) -> list[Filter]:
    found = []
    for message in netlink.get_filters(index=ifindex, parent=PARENTS[direction]):
        options = message.get_attr("TCA_OPTIONS")
        # The kernel lists each priority once without a handle, besides its filters.
        if options is None or not message["handle"]:
            continue
        kind = message.get_attr("TCA_KIND")
        is_bpf = kind == "bpf"
        found.append(
            Filter(
                kind,
                message["info"] >> 16,
                message["handle"],
                (options.get_attr("TCA_BPF_NAME") or "") if is_bpf else "",
                _program_id(options) if is_bpf else 0,
            )
        )
    return sorted(found, key=lambda item: (item.priority, item.handle))


def _program_id(options: Any) -> int:
    """TCA_BPF_ID, which pyroute2 (0.9) has no name for: read from the attribute's bytes."""
    for name, value in options["attrs"]:
        if name == "TCA_BPF_ID":
            return int(value)
        if name == "UNKNOWN" and value["header"]["type"] == _BPF_ID:
            start = value.offset + 4
            return int.from_bytes(value.data[start : start + 4], sys.byteorder)
    return 0


def _in_slot(found: list[Filter], direction: str, slot: Slot) -> Filter | None:
    for item in found:
        if (item.priority, item.handle) == (slot.priority(direction), slot.handle):
            return item
    return None
