"""From C sources to a Bundle: compiler children, and the cache that spares them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import structs

from ebpf import trust
from ebpf.compile import constants, source
from ebpf.compile.linker import Piece, link
from ebpf.compile.source import Unit
from ebpf.errors import CompileError, Untrusted
from ebpf.layouts import SCHED_CLS, SOCKET_HOOKS, XDP, XDP_ATTACH, Bundle, MapSpec, Program

_CHILD = Path(__file__).with_name("child.py")
_HEADERS = Path(__file__).parents[1] / "headers"
_CONSTANTS_FILE = "consts.h"
_TIMEOUT_SECONDS = 120
_KEPT_BUNDLES = 40
_CACHE_MODE = 0o755
_VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {"live": (), "trace": (("TRACE", "1"),)}


class _Answer(msgspec.Struct):
    """What the child writes; bytes travel as base64."""

    error: str = ""
    detail: str = ""
    programs: tuple[Piece, ...] = ()
    maps: tuple[MapSpec, ...] = ()


def bundle(
    variant: str = "live",
    defines: Iterable[tuple[str, str]] = (),
    directory: Path | None = None,
    units: Sequence[Unit] = source.UNITS,
) -> Bundle:
    """The compiled programs of `variant` ("live" or "trace"), from the cache if they are there.

    `defines` are added to every unit; `directory` and `units` replace bpf_src and its units.
    Raises CompileError with the compiler's messages.
    """
    directory = directory or source.source_dir()
    extra = (*_VARIANTS[variant], *defines)
    units = [structs.replace(unit, defines=(*unit.defines, *extra)) for unit in units]
    texts = [source.join(unit, directory) for unit in units]
    consts = directory / _CONSTANTS_FILE
    enums = constants.constants(consts.read_text()) if consts.is_file() else {}
    key = _key(variant, units, texts)
    path = cache_dir() / f"{key}.bundle"
    if (cached := _read(path, key)) is not None:
        return cached
    # Only texts that include the constants can be asked about them.
    tail = constants.assertions(enums)
    marker = f'"{directory.name}/{_CONSTANTS_FILE}"'
    texts = [text + tail if marker in text else text for text in texts]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        answers = list(pool.map(_compile, units, texts))
    made = _merge(key, variant, units, answers, enums)
    _write(path, made)
    return made


_PROBE = """
#include <uapi/linux/bpf.h>
#include <linux/types.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/icmpv6.h>
#include <linux/tcp.h>
BPF_F_TABLE("array", u32, u64, probe, 1, 0);
int probe_program(struct __sk_buff *skb) { u32 zero = 0; return probe.lookup(&zero) != 0; }
"""


def probe() -> None:
    """Compiles a few lines, past the cache: raises CompileError if bcc or headers are missing."""
    _compile(Unit("probe", "probe.c"), _PROBE)


def cache_dir() -> Path:
    """$LBCTL_CACHE_DIR, else /var/cache/lbctl if it can be written, else ~/.cache/lbctl."""
    if named := os.environ.get("LBCTL_CACHE_DIR"):
        return Path(named)
    shared = Path("/var/cache/lbctl")
    if os.access(shared if shared.is_dir() else shared.parent, os.W_OK):
        return shared
    return Path.home() / ".cache" / "lbctl"


def cache_flaw() -> str:
    """Why the cache is neither believed nor written, empty if it is: others could put programs
    there that this process would load."""
    try:
        return trust.flaw(cache_dir())
    except FileNotFoundError:
        return ""  # it is made in a directory that is looked at then
    except OSError as error:
        return str(error)


def _key(variant: str, units: Sequence[Unit], texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    parts = [variant.encode(), msgspec.json.encode(list(units)), *(t.encode() for t in texts)]
    parts += [_CHILD.read_bytes(), Path(constants.__file__).read_bytes(), _compilers().encode()]
    parts += [path.read_bytes() for path in sorted((_HEADERS / "include").rglob("*.h"))]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


@functools.cache
def _compilers() -> str:
    """Names the libraries that compile, by their files: cheaper than asking them, and as exact."""
    found = [platform.machine()]
    # The UAPI headers' version.
    with contextlib.suppress(OSError):
        found.append(Path("/usr/include/linux/version.h").read_text())
    for pattern in ("libbcc.so*", "libclang-cpp.so*", "libLLVM-*.so*"):
        for directory in (Path("/usr/lib"), Path("/usr/local/lib"), *Path("/usr/lib").glob("*-*")):
            for path in directory.glob(pattern):
                if path.is_file() and not path.is_symlink():
                    stat = path.stat()
                    found.append(f"{path}:{stat.st_size}:{stat.st_mtime_ns}")
    return "\n".join(sorted(set(found)))


def _read(path: Path, key: str) -> Bundle | None:
    try:
        found = msgspec.msgpack.decode(trust.read(path), type=Bundle)
    except (OSError, Untrusted, msgspec.DecodeError):
        return None
    return found if found.hash == key else None


def _write(path: Path, made: Bundle) -> None:
    """Best effort: a cache that cannot be written costs time at the next start and nothing else."""
    try:
        trust.make_directory(path.parent, _CACHE_MODE)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    except (OSError, Untrusted):
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(msgspec.msgpack.encode(made))
        os.replace(temporary, path)
        _forget_old(path.parent)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def _forget_old(directory: Path) -> None:
    """Keeps the bundles made last; another process may be at the same."""
    made = [(item.stat().st_mtime_ns, item.path) for item in os.scandir(directory) if _ours(item)]
    for _, old in sorted(made)[:-_KEPT_BUNDLES]:
        Path(old).unlink(missing_ok=True)


def _ours(item: os.DirEntry[str]) -> bool:
    return item.name.endswith(".bundle") or item.name.startswith(".new-")


def _compile(unit: Unit, text: str) -> _Answer:
    """One unit, in a child; the distribution's Python first, since that is where bcc lives."""
    request = msgspec.json.encode({"text": text, "defines": unit.defines, "headers": str(_HEADERS)})
    answer, messages = _Answer("no-bcc", "no Python to run"), ""
    for python in _pythons():
        if not os.access(python, os.X_OK):
            continue
        answer, messages = _run_child(python, unit, request)
        if answer.error not in ("no-bcc", "impostor"):
            break
    if answer.error:
        raise _refusal(unit, answer, messages)
    return answer


def _pythons() -> tuple[str, ...]:
    return tuple(dict.fromkeys(("/usr/bin/python3", sys.executable)))


def _run_child(python: str, unit: Unit, request: bytes) -> tuple[_Answer, str]:
    try:
        done = subprocess.run(
            [python, "-I", str(_CHILD)],
            input=request,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CompileError(
            f"compiling {unit.file} ({unit.name}) took more than {_TIMEOUT_SECONDS} s",
            "The machine may be short of memory; LLVM needs about 150 MB.",
        ) from error
    messages = done.stderr.decode(errors="replace")
    if done.returncode > 0 and "error:" in messages:
        # How LLVM refuses what clang let pass, such as too large a stack: it ends the process.
        return _Answer("compile"), messages
    if done.returncode:
        raise CompileError(
            f"the compiler died on {unit.file} ({unit.name}), {_death(done.returncode)}\n"
            + _last_lines(messages, 20),
            "A signal is a fault in LLVM or too little memory; otherwise the last lines say why.",
        )
    try:
        return msgspec.json.decode(done.stdout, type=_Answer), messages
    except msgspec.DecodeError as error:
        raise CompileError(
            f"the compiler's answer about {unit.file} is unreadable: {error}",
            "This is a fault of ebpf/compile/child.py.",
        ) from error


def _death(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def _last_lines(text: str, count: int) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


_INSTALL = "On Debian and Ubuntu: apt install python3-bpfcc linux-libc-dev."
_REFUSALS = {
    "no-bcc": ("bcc is not installed for /usr/bin/python3 ({detail})", _INSTALL),
    "impostor": (
        "the module bcc at {detail} is not the BPF Compiler Collection",
        "The package of that name on PyPI is unrelated: remove it. " + _INSTALL,
    ),
    "headers": ("the kernel's UAPI headers are missing: {detail}", _INSTALL),
    "layout": ("a record has no layout that Python can use: {detail}", ""),
    "call": (
        "program {detail} contains a call that bcc cannot make",
        "Mark helpers `static __always_inline`; maps are only usable in files of bpf_src.",
    ),
    "map": ("program {detail} refers to a map that is not in its unit", ""),
    "global": (
        "program {detail} uses a global variable",
        "bcc has none: use a constant, a map, or the stack.",
    ),
}


def _refusal(unit: Unit, answer: _Answer, messages: str) -> CompileError:
    if answer.error in _REFUSALS:
        message, hint = _REFUSALS[answer.error]
        return CompileError(
            f"{unit.file} ({unit.name}): " + message.format_map({"detail": answer.detail}), hint
        )
    hint = "The lines above name file and line."
    if "could not open bpf map" in messages or "Operation not permitted" in messages:
        hint = "bcc creates small maps as it compiles: this needs root, or CAP_BPF."
    elif "file not found" in messages:
        hint = "A header is missing. " + _INSTALL
    text = messages.strip() or answer.detail
    return CompileError(f"{unit.file} ({unit.name}) does not compile:\n{text}", hint)


def _merge(
    key: str,
    variant: str,
    units: Sequence[Unit],
    answers: Sequence[_Answer],
    enums: dict[str, int],
) -> Bundle:
    programs: dict[str, Program] = {}
    maps: dict[str, MapSpec] = {}
    for unit, answer in zip(units, answers, strict=True):
        for spec in answer.maps:
            if maps.setdefault(spec.name, spec) != spec:
                raise CompileError(
                    f"map {spec.name} of unit {unit.name} differs from that of another unit",
                    "Give maps whose records differ per family a name per family.",
                )
        for found in link(answer.programs, enums):
            if found.name in programs:
                raise CompileError(
                    f"program {found.name} exists in {unit.name} and {programs[found.name].unit}"
                )
            kind, attach = _kind(found.name)
            programs[found.name] = Program(
                found.name,
                unit.name,
                found.insns,
                found.relocations,
                kind,
                attach,
                found.kernel_reads,
                found.functions,
            )
    return Bundle(key, variant, programs, maps, enums)


def _kind(name: str) -> tuple[int, int]:
    """Program and attach type by the name's first part: sock_, xdp_, else TC."""
    if name.startswith("sock_"):
        hook = name.removeprefix("sock_")
        if hook in SOCKET_HOOKS:
            return SOCKET_HOOKS[hook]
        raise CompileError(
            f"program {name}: no socket hook is called {hook}",
            f"Known: {', '.join(SOCKET_HOOKS)}.",
        )
    if name.startswith("xdp_"):
        return XDP, XDP_ATTACH
    return SCHED_CLS, 0
