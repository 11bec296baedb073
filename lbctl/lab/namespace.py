"""Network namespaces by name: list them, and run code or programs inside one.

`ip netns exec` is not used: it mounts a fresh /sys, and with it the BPF file system is gone.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ebpf.errors import KernelError, LbError

RUN_NETNS = Path("/run/netns")
IP_TIMEOUT = 20.0  # seconds; a batch takes milliseconds

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


def path_of(namespace: str) -> Path:
    return RUN_NETNS / namespace


def existing() -> set[str]:
    """Names of all network namespaces that `ip netns` would list."""
    try:
        return set(os.listdir(RUN_NETNS))
    except FileNotFoundError:
        return set()


def run_in(namespace: str, function: Callable[[], T]) -> T:
    """Call `function` in a thread that has entered `namespace`, and return what it returns.

    The thread ends with the call, so the caller's own namespace cannot be lost. Sockets opened and
    processes started by `function` belong to the namespace; /proc/sys/net shows its settings.
    """

    def work() -> T:
        _enter(namespace)
        return function()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def _enter(namespace: str) -> None:
    try:
        descriptor = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LbError(f"network namespace {namespace!r} does not exist") from None
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
            raise KernelError(f"entering network namespace {namespace!r}", ctypes.get_errno())
    finally:
        os.close(descriptor)


def ip_batch(lines: Sequence[str], *, force: bool = False) -> None:
    """Run `ip` commands, one per line, in the namespace of the calling thread.

    With `force`, a line that fails does not stop the rest, and nothing is raised.
    """
    command = ["ip", "-force", "-batch", "-"] if force else ["ip", "-batch", "-"]
    try:
        done = subprocess.run(
            command,
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=IP_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise LbError("the program `ip` is missing", "Install the package iproute2.") from None
    if done.returncode != 0 and not force:
        raise LbError(f"ip failed: {done.stderr.strip()}", _explain(done.stderr, lines))


def _explain(stderr: str, lines: Sequence[str]) -> str:
    if "Operation not permitted" in stderr:
        return "Network namespaces need root."
    # "Command failed -:7": the number of the line that failed.
    number = stderr.rpartition("-:")[2].strip()
    if number.isdigit() and 0 < int(number) <= len(lines):
        return f"The command was: ip {lines[int(number) - 1]}"
    return ""
