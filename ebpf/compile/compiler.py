"""From C sources to a Bundle, and the cache that spares the compiler."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from ebpf import trust
from ebpf.compile import children, constants, headers, linker, source
from ebpf.compile.children import Answer
from ebpf.compile.source import Unit
from ebpf.errors import CompileError, Untrusted
from ebpf.layouts import SCHED_CLS, SOCKET_HOOKS, XDP, XDP_ATTACH, Bundle, MapSpec, Program

SHIPPED = Path(__file__).parents[1] / "compiled"
_CONSTANTS_FILE = "consts.h"
_KEPT_BUNDLES = 40
_CACHE_MODE = 0o755
# What makes the bundle of the sources: texts, flags, assertions, programs of their pieces.
_MAKERS = (source, children, constants, linker)
_VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {"live": (), "trace": (("TRACE", "1"),)}


def bundle(
    variant: str = "live",
    defines: Iterable[tuple[str, str]] = (),
    directory: Path | None = None,
    units: Sequence[Unit] = source.UNITS,
) -> Bundle:
    """The compiled programs of `variant` ("live" or "trace"), from the cache if they are there, or
    as they came with the package.

    `defines` are added to every unit; `directory` and `units` replace bpf_src and its units.
    Raises CompileError with the compiler's messages.
    """
    directory = directory or source.source_dir()
    extra = (*_VARIANTS[variant], *defines)
    units = [structs.replace(unit, defines=(*unit.defines, *extra)) for unit in units]
    key = _key(variant, units, directory)
    for kept in (cache_dir(), SHIPPED):
        if (found := _read(kept, key)) is not None:
            with contextlib.suppress(OSError):  # else it is forgotten sooner than it might be
                os.utime(_path(kept, key))
            return found
    texts = [source.join(unit, directory) for unit in units]
    consts = directory / _CONSTANTS_FILE
    enums = constants.constants(consts.read_text()) if consts.is_file() else {}
    # Only texts that include the constants can be asked about them.
    tail = constants.assertions(enums)
    marker = f'"{directory.name}/{_CONSTANTS_FILE}"'
    texts = [text + tail if marker in text else text for text in texts]
    answers = children.compile_units(units, texts)
    made = _merge(key, variant, units, answers, enums)
    _write(cache_dir(), made)
    return made


def ship() -> list[Path]:
    """Keeps every variant beside the package, for all who start from this copy of it: an image.

    Needs no privilege and nothing of the kernel it runs on. Raises CompileError.
    """
    paths = []
    for made in map(bundle, _VARIANTS):
        _write(SHIPPED, made)
        if _read(SHIPPED, made.hash) is None:
            raise CompileError(
                f"{SHIPPED} cannot be written, or would not be believed",
                "Whoever owns the package has to run this, and nobody else may write there.",
            )
        paths.append(_path(SHIPPED, made.hash))
    return paths


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


def _key(variant: str, units: Sequence[Unit], directory: Path) -> str:
    """Of all files that may go into the units: every start asks, and to join them would take ten
    times as long."""
    digest = hashlib.sha256()
    for part in (variant, directory.name, _compilers()):
        _add(digest, part.encode())
    _add(digest, msgspec.json.encode(list(units)))
    makers = [children.CHILD, *(Path(str(module.__file__)) for module in _MAKERS)]
    for root in (directory, headers.OWN / "include"):
        for path in sorted(root.rglob("*.[ch]")):
            _add(digest, str(path.relative_to(root)).encode())
            _add(digest, path.read_bytes())
    for path in makers:
        _add(digest, path.read_bytes())
    return digest.hexdigest()


def _add(digest: Any, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little") + part)


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
                    found.append(f"{path}:{stat.st_size}:{int(stat.st_mtime)}")
    return "\n".join(sorted(set(found)))


def _path(directory: Path, key: str) -> Path:
    return directory / f"{key}.bundle"


def _read(directory: Path, key: str) -> Bundle | None:
    try:
        found = msgspec.msgpack.decode(trust.read(_path(directory, key)), type=Bundle)
    except (OSError, Untrusted, msgspec.DecodeError):
        return None
    return found if found.hash == key else None


def _write(directory: Path, made: Bundle) -> None:
    """Best effort: a cache that cannot be written costs time at the next start and nothing else."""
    try:
        trust.make_directory(directory, _CACHE_MODE)
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".new-")
    except (OSError, Untrusted):
        return
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(msgspec.msgpack.encode(made))
        os.replace(temporary, _path(directory, made.hash))
        _forget_old(directory)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def _forget_old(directory: Path) -> None:
    """Keeps the bundles used last; another process may be at the same."""
    made = [(item.stat().st_mtime_ns, item.path) for item in os.scandir(directory) if _ours(item)]
    for _, old in sorted(made)[:-_KEPT_BUNDLES]:
        Path(old).unlink(missing_ok=True)


def _ours(item: os.DirEntry[str]) -> bool:
    return item.name.endswith(".bundle") or item.name.startswith(".new-")


def _merge(
    key: str,
    variant: str,
    units: Sequence[Unit],
    answers: Sequence[Answer],
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
        for found in linker.link(answer.programs, enums):
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
