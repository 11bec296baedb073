"""Numbers of the system calls that the C library has no function for, by machine."""

from __future__ import annotations

import platform

import msgspec


class Calls(msgspec.Struct, frozen=True):
    """__NR_bpf and so on."""

    bpf: int
    membarrier: int
    seccomp: int


# Everything newer shares the generic table's numbers.
_GENERIC = Calls(bpf=280, membarrier=283, seccomp=277)
_BY_MACHINE = {
    "x86_64": Calls(bpf=321, membarrier=324, seccomp=317),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": Calls(bpf=361, membarrier=365, seccomp=358),
    "s390x": Calls(bpf=351, membarrier=356, seccomp=348),
    "armv7l": Calls(bpf=386, membarrier=389, seccomp=383),
    "i686": Calls(bpf=357, membarrier=375, seccomp=354),
}


def numbers() -> Calls | None:
    """Those of this machine, if they are known."""
    return _BY_MACHINE.get(platform.machine())
