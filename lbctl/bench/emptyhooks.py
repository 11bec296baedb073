"""The peer hooks: a node whose interfaces have programs that do nothing.

What it costs above the floor is the kernel's own price for having programs there, before they have
done anything: no load balancer in BPF can be quicker by the way through the stack.
"""

from __future__ import annotations

import os
import socket

from ebpf.errors import KernelError
from ebpf.hooks.tc import DIRECTIONS, POSITIONS
from ebpf.kernel import features, libbpf, syscall
from ebpf.layouts import SCHED_CLS
from lbctl.bench.dataset import Dataset
from lbctl.bench.peers import Bare
from lbctl.bench.records import HOOKS
from lbctl.bench.testbed import POD_INTERFACE, UPLINK, Testbed
from lbctl.lab import namespace

_NEXT = bytes.fromhex("b7000000ffffffff 9500000000000000")  # r0 = TCX_NEXT; exit


class EmptyHooks(Bare):
    """Attached where an agent attaches its programs: both directions of pods and uplinks."""

    name = HOOKS

    def __init__(self) -> None:
        self._fds: list[int] = []

    def unavailable(self) -> str:
        return "" if features.has_tcx() else "this kernel has no tcx links (Linux 6.6)"

    def load(self, testbed: Testbed, data: Dataset, timeout: float) -> float | None:
        namespace.run_in(testbed.sites[self.name].node, self._attach)
        return None

    def _attach(self) -> None:
        self._fds.append(libbpf.prog_load(SCHED_CLS, "nothing", _NEXT))
        for interface in (POD_INTERFACE, UPLINK):
            try:
                ifindex = socket.if_nametoindex(interface)
            except OSError as error:
                raise KernelError(f"looking for {interface}", error.errno or 0) from error
            for direction in DIRECTIONS:
                link = syscall.tcx_link(self._fds[0], ifindex, direction, POSITIONS[direction])
                self._fds.append(link)

    def stop(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
