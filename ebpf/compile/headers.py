"""The headers that bcc compiles with: ours, and the kernel's UAPI headers (linux-libc-dev)."""

from __future__ import annotations

import contextlib
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ebpf.errors import CompileError

OWN = Path(__file__).parents[1] / "headers"
INSTALL = "On Debian and Ubuntu: apt install python3-bpfcc linux-libc-dev."
_SYSTEM = Path("/usr/include")


class Headers(msgspec.Struct, frozen=True):
    """`tree` is what bcc takes for the kernel's sources; `flags` tell where the others lie."""

    tree: str
    flags: tuple[str, ...]


@contextlib.contextmanager
def prepared() -> Iterator[Headers]:
    """Raises CompileError if the kernel's headers are missing."""
    flags = _flags()
    with tempfile.TemporaryDirectory(prefix="lbctl-headers-") as tree:
        _build(Path(tree) / "include")
        yield Headers(tree, flags)


def _build(include: Path) -> None:
    uapi = include / "uapi" / "linux"
    uapi.mkdir(parents=True)
    for path in (OWN / "include").iterdir():
        (include / path.name).symlink_to(path)
    for path in (_SYSTEM / "linux").iterdir():
        # bcc brings its own bpf.h: an empty one here keeps the two from meeting.
        if path.name != "bpf.h":
            (uapi / path.name).symlink_to(path)
    (uapi / "bpf.h").touch()
    if (_SYSTEM / "asm-generic").is_dir():
        (include / "uapi" / "asm-generic").symlink_to(_SYSTEM / "asm-generic")


def _flags() -> tuple[str, ...]:
    flags = ("-isystem", str(_SYSTEM))
    triplet = sysconfig.get_config_var("MULTIARCH")
    found = [_SYSTEM / triplet] if triplet else []
    found += [path.parents[1] for path in _SYSTEM.glob("*/asm/types.h")]
    for directory in found:
        if (directory / "asm" / "types.h").is_file():
            return ("-isystem", str(directory), *flags)
    if (_SYSTEM / "asm" / "types.h").is_file():
        return flags
    raise CompileError(
        f"the kernel's UAPI headers are missing: no asm/types.h below {_SYSTEM}", INSTALL
    )
