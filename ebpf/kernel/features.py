"""What this kernel offers beyond the oldest one supported, and hiding it for tests.

LBCTL_MASK=tcx,... in the environment makes the named features look absent.
"""

from __future__ import annotations

import errno
import os
import platform

from ebpf.errors import KernelError, MissingFeature
from ebpf.kernel import syscall

TCX = "tcx"
CHECKSUM_KIND = "checksum_kind"  # see ebpf/kernel/fields.py
# A look-up of a route tells its source address (6.7): programs find out by asking.
ROUTE_SOURCE = "route_source"
MPTCP = "mptcp"  # see ebpf/kernel/optional.py


# Programs and agent write tables that others read meanwhile, and count on stores being seen in the
# order they were made (docs/datapath.md, "Protocol"). Elsewhere that would take barriers.
KEEPING_ORDER = ("x86_64",)


def require_store_order(machine: str | None = None) -> str:
    """`machine` as uname has it, by default this one, if its memory is ordered enough for the
    tables. Raises MissingFeature."""
    machine = machine or platform.machine()
    if machine not in KEEPING_ORDER:
        raise MissingFeature(
            f"lbctl does not run on {machine}: processors of that kind may show each other stores "
            "in another order than they were made in",
            f"It runs on {', '.join(KEEPING_ORDER)}.",
        )
    return machine


def masked() -> frozenset[str]:
    """Names of features that are hidden."""
    return frozenset(filter(None, os.environ.get("LBCTL_MASK", "").split(",")))


def has_tcx() -> bool:
    """TC programs by link (6.6); asked of the loopback device, which every namespace has.

    Raises KernelError where asking itself is not allowed.
    """
    if TCX in masked():
        return False
    try:
        syscall.tcx_programs(1, "ingress")
    except KernelError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    return True
