"""What goes into a bundle: one text per file, each by itself, so that what fails costs itself."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from ebpf.hooks import cgroup
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance
from ebpf.kernel import netlink
from lbctl import status
from lbctl.bundle import tables
from lbctl.bundle.redact import redacted
from lbctl.config import standing
from lbctl.errors import LbError
from lbctl.host import requirements
from lbctl.inspect import backends, flows, instance, services
from lbctl.inspect.flowfilter import FlowFilter

_LOG_BYTES: Final = 8 << 20  # the end of each log
_FLOWS: Final = 20_000
_SYSCTLS: Final = (
    "kernel/osrelease",
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_max",
)
Part = tuple[str, Callable[[], object]]


def write(target: Path, pin_dir: Path, logs: tuple[Path, ...], *, with_flows: bool) -> list[str]:
    """Make the archive; returns what could not be had. Raises OSError."""
    missing = []
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    top = f"lbctl-{os.uname().nodename}-{stamp}"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, make in _parts(pin_dir, logs, with_flows=with_flows):
            try:
                text = _text(make())
            except (LbError, OSError, ValueError) as error:
                why = getattr(error, "message", str(error))
                missing.append(f"{name}: {why}")
                continue
            _add(archive, f"{top}/{name}", text)
        _add(archive, f"{top}/missing.txt", "\n".join(missing) + "\n")
    return missing


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = redacted(text).encode(errors="replace")
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(content))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1).decode() + "\n"


def _parts(pin_dir: Path, logs: tuple[Path, ...], *, with_flows: bool) -> Iterator[Part]:
    yield "versions.json", _versions
    yield "kernel.json", _kernel
    yield "network.json", _network
    yield "doctor.json", lambda: requirements.check(pin_dir)
    yield "agent.json", lambda: _agent(pin_dir)
    yield "facts.json", lambda: standing.read(pin_dir)
    yield "attached.json", lambda: _attached(pin_dir)
    yield "status.json", _of(pin_dir, instance.read)
    yield "services.json", _of(pin_dir, services.list_services)
    yield "backends.json", _of(pin_dir, backends.list_backends)
    if with_flows:
        listed = _of(pin_dir, lambda i: list(islice(flows.list_flows(i, FlowFilter()), _FLOWS)))
        yield "flows.json", listed
    for name in tables.names(of_clients=with_flows):
        yield f"maps/{name}.json", _of(pin_dir, partial(tables.contents, name=name))
    if config := _config_file(pin_dir):
        yield "config.yaml", lambda: config.read_text(errors="replace")
    for number, log in enumerate(logs):
        yield f"logs/{number}-{log.name}", partial(_tail, log)


def _of(pin_dir: Path, read: Callable[[Instance], object]) -> Callable[[], object]:
    """Opened for each, so that one map that is missing costs what needs it."""

    def make() -> object:
        with Instance.open(pin_dir, readonly=True) as opened:
            return read(opened)

    return make


def _versions() -> object:
    found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {"python": platform.python_version(), "packages": dict(sorted(found.items()))}


def _kernel() -> object:
    system = os.uname()
    sysctls = {}
    for name in _SYSCTLS:
        with contextlib.suppress(OSError):
            sysctls[name.replace("/", ".")] = Path("/proc/sys", name).read_text().strip()
    return {
        "release": system.release,
        "version": system.version,
        "machine": system.machine,
        "sysctls": sysctls,
        "cpus": os.cpu_count(),
        "memory": Path("/proc/meminfo").read_text().splitlines()[:3],
        "bpf_mounts": [
            line for line in Path("/proc/self/mounts").read_text().splitlines() if " bpf " in line
        ],
    }


def _network() -> object:
    found = netlink.read_network()
    return {
        "links": found.links,
        "addresses": found.addresses,
        "default_routes": found.default_routes,
    }


def _attached(pin_dir: Path) -> object:
    return {
        "interfaces": Attacher(pin_dir).attachments(),
        "sockets": cgroup.SocketAttacher(pin_dir).hooks(),
    }


def _agent(pin_dir: Path) -> object:
    """Its words and its command line; never its environment, which may hold anything."""
    pid = status.running_agent(pin_dir)
    found: dict[str, object] = {
        "pid": pid,
        "status": status.read(pin_dir),
        "status_age_seconds": status.age(pin_dir),
        "hints": status.read_hints(pin_dir),
        "troubles": status.read_troubles(pin_dir),
    }
    if pid:
        found["arguments"] = " ".join(_arguments(pid))
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kept = ("Vm", "Rss", "Threads", "Cap", "Seccomp")
        found["process"] = [line for line in lines if line.startswith(kept)]
    return found


def _arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")


def _config_file(pin_dir: Path) -> Path | None:
    pid = status.running_agent(pin_dir)
    try:
        words = _arguments(pid) if pid else []
    except OSError:
        return None
    for place, word in enumerate(words):
        if word == "--config" and place + 1 < len(words):
            return Path(words[place + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return file.read(_LOG_BYTES).decode(errors="replace")
