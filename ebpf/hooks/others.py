"""What others run on interfaces: programs beside ours at either hook, and queueing disciplines."""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection
from typing import Final

import msgspec

from ebpf.errors import KernelError
from ebpf.hooks import clsact
from ebpf.kernel import dump, syscall

_GET_QDISC, _GET_FILTER = 38, 46
_TC_HEAD = struct.Struct("=BxxxiIII")  # struct tcmsg: family, index, handle, parent, info
_KIND, _OPTIONS, _BPF_NAME = 1, 2, 7
_ROOT = 0xFFFFFFFF
# Kinds by which nothing is done to a packet on its way out.
_NO_QUEUE: Final = frozenset({"noqueue"})


class Others(msgspec.Struct, frozen=True):
    """Whether anybody else has a say on one interface."""

    ingress: bool
    egress: bool
    queue: bool  # one that delays or drops


class Queues(msgspec.Struct, frozen=True):
    """By interface index: kinds of root queueing disciplines, and who has clsact or the older
    `ingress`."""

    roots: dict[int, str]
    clsact: frozenset[int]
    ingress: frozenset[int]


def queues() -> Queues:
    """Those of the calling thread's network namespace, in one list. Raises KernelError."""
    roots: dict[int, str] = {}
    found: dict[str, set[int]] = {"clsact": set(), "ingress": set()}
    for raw in dump.ask(dump.NETLINK_ROUTE, _GET_QDISC, _TC_HEAD.pack(0, 0, 0, 0, 0)):
        _, index, _, parent, _ = _TC_HEAD.unpack_from(raw)
        kind = dump.text(dump.attributes(raw, _TC_HEAD.size).get(_KIND, b""))
        if parent == _ROOT:
            roots[index] = kind
        elif kind in found:
            found[kind].add(index)
    return Queues(roots, frozenset(found["clsact"]), frozenset(found["ingress"]))


def on_interface(ifindex: int, ours: Collection[int], all_queues: Queues) -> Others:
    """`ours` are the ids of programs that do not count. Raises KernelError."""
    return Others(
        ingress=ifindex in all_queues.ingress or _runs_others(ifindex, "ingress", ours, all_queues),
        egress=_runs_others(ifindex, "egress", ours, all_queues),
        queue=all_queues.roots.get(ifindex, "noqueue") not in _NO_QUEUE,
    )


def _runs_others(ifindex: int, direction: str, ours: Collection[int], found: Queues) -> bool:
    try:
        if any(number not in ours for number in syscall.tcx_programs(ifindex, direction)):
            return True
    except KernelError as error:
        if error.errno != errno.EINVAL:  # else this kernel has no tcx
            raise
    return ifindex in found.clsact and _has_other_filters(ifindex, direction)


def _has_other_filters(ifindex: int, direction: str) -> bool:
    head = _TC_HEAD.pack(0, ifindex, 0, clsact.PARENTS[direction], 0)
    for raw in dump.ask(dump.NETLINK_ROUTE, _GET_FILTER, head):
        _, _, handle, _, _ = _TC_HEAD.unpack_from(raw)
        if not handle:  # each priority is listed once without one
            continue
        found = dump.attributes(raw, _TC_HEAD.size)
        options = dump.attributes(found.get(_OPTIONS, b""))
        if dump.text(options.get(_BPF_NAME, b"")) != clsact.NAME:
            return True
    return False
