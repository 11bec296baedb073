"""Which programs a data path does without: the kernel takes a tenth of a start to check them."""

from __future__ import annotations

from typing import Final

from ebpf.layouts import CGROUP_SOCK, CGROUP_SOCK_ADDR, XDP, Bundle, Program
from ebpf.maps.sizes import Sizes

_SOCKETS: Final = (CGROUP_SOCK, CGROUP_SOCK_ADDR)
# TC programs that only packets get to while the way past the stack is open.
_FAST: Final = ("go_past", "track_past", "learn_hops")


def used(bundle: Bundle, sizes: Sizes) -> Bundle:
    """`bundle` without the programs of those parts that `sizes` make no room for."""
    return bundle.without([p.name for p in bundle.programs.values() if not _is_used(p, sizes)])


def _is_used(program: Program, sizes: Sizes) -> bool:
    if program.prog_type in _SOCKETS:
        return sizes.sockets
    if program.prog_type == XDP or program.name.rstrip("46") in _FAST:
        return sizes.fast_path
    return True
