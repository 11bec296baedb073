"""What `lbctl doctor` asks of kernel, container and compiler. Reads and tries, changes nothing."""

from __future__ import annotations

import errno
import os
import platform
import re
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from ebpf import maps, trust
from ebpf.compile import children, compiler
from ebpf.errors import KernelError, LbError, MissingFeature
from ebpf.hooks import cgroup
from ebpf.kernel import bpffs, features, libbpf, sockdiag
from ebpf.kernel import fields as kernel_fields
from ebpf.layouts import SCHED_CLS, Field, MapSpec, Record
from ebpf.maps.sizes import Sizes
from lbctl import status
from lbctl.host import cgrouptree, drivers, obstacles
from lbctl.host import settings as host

OLDEST_KERNEL = (6, 1)
_RINGBUF = 27
_KTIME_GET_COARSE_NS = 160
_ROOT_HINT = (
    "Run as root; in a container, privileged or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON."
)


class Requirement(msgspec.Struct, frozen=True):
    """One answer. `ok` is None when it could not be found out; `remedy` is empty when all is well;
    without a `required` one lbctl does not work, the others cost something."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""
    required: bool = True


def check(pin_dir: Path) -> list[Requirement]:
    """Every requirement, in the order a person would solve them. Takes about a second. What goes
    wrong in one is its answer."""
    checks: list[tuple[str, bool, Callable[[], Requirement]]] = [
        ("machine", True, _machine),
        ("kernel version", True, kernel_version),
        ("libbpf", True, _libbpf),
        ("bpf() allowed", True, _bpf_allowed),
        ("JIT compiler", True, _jit),
        ("clock helper", True, _coarse_clock),
        ("kind of checksums", False, _checksum_kind),
        ("map kinds", True, _map_kinds),
        ("BPF file system", True, lambda: _bpffs(pin_dir)),
        ("attaching to interfaces", True, _attaching),
        ("C compiler (bcc)", True, _compiler),
        ("memory", False, _memory),
        ("cgroup v2", False, _cgroup),
        ("socket hooks", False, _socket_hooks),
        ("closing sockets", False, _closing_sockets),
        ("way past the stack", False, lambda: _fast_path(pin_dir)),
    ]
    checks.append(("XDP", False, partial(_of_host, partial(drivers.xdp, pin_dir))))
    checks += [(name, False, partial(_of_host, work)) for name, work in host.CHECKS.items()]
    return [_guarded(name, required, work) for name, required, work in checks]


def _guarded(name: str, required: bool, work: Callable[[], Requirement]) -> Requirement:
    """A check that fails to run is an answer too."""
    try:
        found = work()
    except LbError as error:
        found = Requirement(name, False, error.message, error.hint, required)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # What a file or a command said may be anything.
        found = Requirement(name, None, f"cannot be found out: {error}", "", required)
    return msgspec.structs.replace(found, name=name, required=required)


def _of_host(work: Callable[[], host.Answer]) -> Requirement:
    answer = work()
    return Requirement("", answer.ok, answer.detail, answer.remedy)


def _answer(ok: bool | None, detail: str, remedy: str = "") -> Requirement:
    return Requirement("", ok, detail, "" if ok else remedy)


def kernel_version(release: str | None = None) -> Requirement:
    """`release` as uname has it; by default this kernel's."""
    release = release or platform.release()
    found = re.match(r"(\d+)\.(\d+)", release)
    if not found:
        return _answer(None, f"the kernel calls itself {release!r}")
    version = (int(found[1]), int(found[2]))
    oldest = ".".join(map(str, OLDEST_KERNEL))
    return _answer(
        version >= OLDEST_KERNEL, release, f"Linux {oldest} is the oldest that is supported."
    )


def _machine() -> Requirement:
    try:
        return _answer(True, features.require_store_order())
    except MissingFeature as error:
        return _answer(False, error.message, f"{error.hint} Leave kube-proxy on this node.")


def _libbpf() -> Requirement:
    libbpf.library()
    return _answer(True, "libbpf.so.1")


def _plain(size: int) -> Record:
    return Record("", size, (Field("", 0, size, 0, f"u{size * 8}"),))


def _try_map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> None:
    os.close(libbpf.map_create(kind, "lbctl_probe", key, value, entries, flags))


def _bpf_allowed() -> Requirement:
    try:
        _try_map(maps.ARRAY, 4, 8, 1)
    except KernelError as error:
        return _answer(False, error.message, _ROOT_HINT)
    return _answer(True, "maps can be created")


def _load(*instructions: bytes) -> int:
    return libbpf.prog_load(SCHED_CLS, "lbctl_probe", b"".join(instructions))


def _instruction(opcode: int, registers: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, registers, 0, value)


_EXIT = _instruction(0x95)


def _jit() -> Requirement:
    fd = _load(_instruction(0xB7), _EXIT)  # r0 = 0
    try:
        jited = libbpf.prog_info(fd).jited_prog_len > 0
    finally:
        os.close(fd)
    return _answer(
        jited,
        "programs are compiled to machine code"
        if jited
        else "programs are interpreted, which does not work for those that call functions",
        "sysctl net.core.bpf_jit_enable=1",
    )


def _coarse_clock() -> Requirement:
    os.close(_load(_instruction(0x85, value=_KTIME_GET_COARSE_NS), _EXIT))
    return _answer(True, "bpf_ktime_get_coarse_ns")


def _checksum_kind() -> Requirement:
    readable = kernel_fields.checksum_place() is not None
    return _answer(
        readable,
        "read without a call"
        if readable
        else "cannot be read, so each packet needs one more helper call",
        "This needs Linux 6.2 or newer with CONFIG_DEBUG_INFO_BTF, and CAP_PERFMON.",
    )


def _map_kinds() -> Requirement:
    page = os.sysconf("SC_PAGE_SIZE")
    kinds: dict[str, tuple[int, int, int, int, int]] = {
        "hash": (maps.HASH, 4, 8, 1, 0),
        "lru_hash": (maps.LRU_HASH, 4, 8, 16, 0),
        "percpu_array": (maps.PERCPU_ARRAY, 4, 8, 1, 0),
        "lpm_trie": (maps.LPM_TRIE, 8, 8, 1, maps.F_NO_PREALLOC),
        "ring buffer": (_RINGBUF, 0, 0, page, 0),
    }
    missing = []
    for name, (kind, key, value, entries, flags) in kinds.items():
        try:
            _try_map(kind, key, value, entries, flags)
        except KernelError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
            missing.append(name)
    try:
        spec = MapSpec("lbctl_probe", maps.ARRAY, maps.F_MMAPABLE, _plain(4), _plain(8))
        maps.create(spec, 1).close()
    except KernelError:
        missing.append("memory-mapped array")
    if missing:
        return _answer(False, f"missing: {', '.join(missing)}", "A kernel with these is needed.")
    return _answer(True, f"{', '.join(kinds)}, memory-mapped array")


def _bpffs(pin_dir: Path) -> Requirement:
    mount, kind = bpffs.filesystem_of(pin_dir)
    if kind == "bpf":
        trust.check(pin_dir)
        return _answer(True, f"{pin_dir} is on {mount}")
    bpffs.require(pin_dir)
    return _answer(False, f"{pin_dir} is on {mount}")


def _attaching() -> Requirement:
    if features.has_tcx():
        return _answer(True, "tcx links")
    # Tried in a namespace that ends with the command.
    command = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "clsact"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _answer(None, f"no tcx, and clsact could not be tried: {error}")
    if done.returncode == 0:
        return _answer(True, "clsact filters (the kernel has no tcx links; 6.6 has)")
    return _answer(
        False,
        f"neither tcx links nor clsact filters: {done.stderr.strip()}",
        "Load them with modprobe sch_ingress cls_bpf, or use Linux 6.6 or newer.",
    )


def _compiler() -> Requirement:
    children.probe()
    if flaw := compiler.cache_flaw():
        return _answer(True, f"compiles, but results are not cached: {flaw}")
    return _answer(True, f"compiles; results are cached in {compiler.cache_dir()}")


def _memory() -> Requirement:
    """Map memory is charged to the cgroup of the process that creates the maps."""
    sizes = Sizes.automatic_here()
    first, most = sizes.at_first().estimated_bytes(), sizes.estimated_bytes()
    mounted = cgroup.mounted()
    limit = cgrouptree.memory_limit(mounted[0][0]) if mounted else None
    megabytes = f"maps take about {first >> 20} MB at first, {most >> 20} MB at their largest"
    if limit is None:
        return _answer(True, f"{megabytes}; this process has no memory limit from cgroup v2")
    return _answer(
        limit > 4 * first,
        f"{megabytes}; this process may use {limit >> 20} MB",
        "Raise the container's memory limit, or choose a smaller --flows.",
    )


def _cgroup() -> Requirement:
    mounted = cgroup.mounted()
    if not mounted:
        return _answer(
            False, "no cgroup2 is mounted", "mount -t cgroup2 none /sys/fs/cgroup (socket hooks)."
        )
    path, root = mounted[0]
    if not cgrouptree.is_whole(path):
        return _answer(
            False,
            f"{path} is only a part of the tree ({root})",
            "Mount the host's /sys/fs/cgroup into the container and name it with --cgroup.",
        )
    return _answer(True, f"{path} is the root of the tree")


def _socket_hooks() -> Requirement:
    missing = cgroup.missing_hooks()
    if missing:
        return _answer(
            False,
            f"not in this kernel: {', '.join(missing)}",
            "Processes of the node itself do not reach services. That needs a kernel with "
            "CONFIG_CGROUP_BPF; --socket-lb off does without.",
        )
    return _answer(True, ", ".join(cgroup.HOOKS))


def _closing_sockets() -> Requirement:
    able = {sockdiag.NAMES[p]: sockdiag.can_destroy(p) for p in (sockdiag.TCP, sockdiag.UDP)}
    missing = [name for name, can in able.items() if not can]
    if missing:
        return _answer(
            False,
            f"not on request in this kernel: {', '.join(missing)}",
            "A process of the node whose endpoint is gone only notices by a timeout. With "
            "CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG its socket would be closed at once.",
        )
    return _answer(True, " and ".join(able))


def _fast_path(pin_dir: Path) -> Requirement:
    found = obstacles.find()
    if not found:
        return _answer(True, "nothing else acts on forwarded packets")
    said = status.read(pin_dir)
    if said is None or not said.fast_path.wanted:
        return _answer(
            True, f"not used (--fast-path off); it would be closed by: {'; '.join(found)}"
        )
    return _answer(
        False,
        f"closed by: {'; '.join(found)}",
        "All packets take the network stack while there are rules for them: remove those that are "
        "not needed any more, or turn fastPath off.",
    )
