"""What an agent says of itself: one small JSON file per instance, for `lbctl status` and probes.

bpffs cannot hold ordinary files, so it lies in /run/lbctl, named by a hash of the pin directory.
"""

import hashlib
import os
import time
from pathlib import Path

import msgspec

from ebpf import trust
from ebpf.errors import Untrusted
from ebpf.kernel import bpffs

RUN_DIR = Path("/run/lbctl")
_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o640
BEAT_SECONDS = 60.0  # the file is written so often at least
OLD_SECONDS = 180.0  # older, it is that of an agent that hangs, or that cannot write it
# Other files of an instance: what its agent goes by (lbctl/config/standing.py), and what others ask
# of it (lbctl/agent/auditing.py); and where it tells events (lbctl/observe/wire.py).
BESIDE = ("facts", "asked", "events")


class TableUse(msgspec.Struct, frozen=True):
    """How full a table is; `flag` is the agent's option for a larger one. One that grows has room
    for `limit` entries now, and for `most` when it has grown. Of flows, whose entries are cells of
    which each has two or four: how many made room for others, and how many found none."""

    entries: int
    limit: int
    flag: str
    most: int = 0
    evicted: int = 0
    refused: int = 0


class SourceState(msgspec.Struct, frozen=True):
    """Where the objects come from, and how that is doing."""

    kind: str  # manifests or kubernetes
    connected: bool = False
    complete: bool = False
    last_error: str = ""
    problems: tuple[str, ...] = ()


class DriverState(msgspec.Struct, frozen=True):
    """XDP on one uplink. `state` is "sends", "receives" (what comes in there is sent on, nothing
    that came in elsewhere), "testing", or "tc"; `why` says why it is no more than that."""

    name: str
    state: str
    why: str


class Audited(msgspec.Struct, frozen=True):
    """What the agent's audit has done since its start. `corrections` counts by kind what somebody
    had broken and is right again, `lately` are sentences about the last of them."""

    answered: int = 0  # the last request that a whole pass followed
    corrections: dict[str, int] = {}
    lately: tuple[str, ...] = ()


class FastPathState(msgspec.Struct, frozen=True):
    """The way past the stack. `obstacles` say why it is not open although it is `wanted`."""

    wanted: bool = False
    open: bool = False
    obstacles: tuple[str, ...] = ()


class StatusRecord(msgspec.Struct, frozen=True):
    """The file's content. `ready`: synced, applied, and programs attached to all pod interfaces."""

    pid: int
    version: str
    node: str
    pin_dir: str
    ready: bool = False
    synced: bool = False
    services: int = 0
    service_ports: int = 0
    endpoints: int = 0  # (service port, endpoint) pairs
    interfaces: int = 0  # with programs
    last_apply: str = ""  # RFC 3339
    last_apply_seconds: float = 0.0
    taking_over: bool = False  # kube-proxy's rules are still there
    socket_lb: str = ""  # off, host or all
    xdp: str = ""  # off, auto or on
    drivers: tuple[DriverState, ...] = ()
    # Who would have a say about packets that drivers send on: by auto nothing is sent on for them.
    xdp_others: tuple[str, ...] = ()
    sockets_closed: int = 0  # by this agent, since their endpoint had gone
    thread_restarts: int = 0  # that ended or were stuck
    corrections: int = 0  # counts of live flows that were wrong, and set right
    source: SourceState = SourceState("")
    conditions: dict[str, int] = {}  # how many things are wrong, by kind (lbctl/troubles.py)
    tables: dict[str, TableUse] = {}
    warnings: tuple[str, ...] = ()
    audit: Audited | None = None
    fast_path: FastPathState = FastPathState()


def path_of(pin_dir: Path) -> Path:
    """The file of the instance in `pin_dir`."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(pin_dir))).hexdigest()
    return RUN_DIR / f"{digest[:16]}.json"


def write(record: StatusRecord) -> None:
    """Replace the file in one step. Raises OSError, Untrusted."""
    _replace(path_of(Path(record.pin_dir)), msgspec.json.encode(record))


def read(pin_dir: Path) -> StatusRecord | None:
    """What the last agent of this instance said; None if nothing readable is there.

    It may have ended since: see `running_agent`.
    """
    try:
        return msgspec.json.decode(trust.read(path_of(pin_dir)), type=StatusRecord)
    except (OSError, Untrusted, msgspec.DecodeError):
        return None


def age(pin_dir: Path) -> float:
    """Seconds since the file was written; 0 if there is none."""
    try:
        return max(0.0, time.time() - path_of(pin_dir).stat().st_mtime)
    except OSError:
        return 0.0


class HintsRecord(msgspec.Struct, frozen=True):
    """Content of a second file: by service port (as its name is stored in the maps), why topology
    hints narrow its endpoints or why not. Ports whose endpoints have no hints are left out.

    `services` are sentences about those (namespace/name) that are not served as their objects say:
    another one has their address, there is no room, something is wrong with the object."""

    pid: int
    ports: dict[str, str]
    services: dict[str, tuple[str, ...]] = {}


def write_hints(pin_dir: Path, record: HintsRecord) -> None:
    """Replace the file of hints in one step. Raises OSError, Untrusted."""
    _replace(_hints_path(pin_dir), msgspec.json.encode(record))


def read_hints(pin_dir: Path) -> dict[str, str] | None:
    """What the agent that runs now says of hints; None if none runs, or it has not said yet."""
    record = _read_hints_record(pin_dir)
    return record.ports if record else None


def read_troubles(pin_dir: Path) -> dict[str, tuple[str, ...]]:
    """What it says of services that are not served as their objects say."""
    record = _read_hints_record(pin_dir)
    return record.services if record else {}


def _read_hints_record(pin_dir: Path) -> HintsRecord | None:
    try:
        record = msgspec.json.decode(trust.read(_hints_path(pin_dir)), type=HintsRecord)
    except (OSError, Untrusted, msgspec.DecodeError):
        return None
    return record if said_by(record.pid, running_agent(pin_dir)) else None


def _hints_path(pin_dir: Path) -> Path:
    return path_of(pin_dir).with_suffix(".hints")


def write_beside(pin_dir: Path, kind: str, content: bytes) -> None:
    """Replace another file of this instance in one step: `kind` is one of BESIDE. Raises OSError,
    Untrusted."""
    _replace(path_of(pin_dir).with_suffix(f".{kind}"), content)


def read_beside(pin_dir: Path, kind: str) -> bytes | None:
    """What is in such a file; None if nothing readable is there."""
    try:
        return trust.read(path_of(pin_dir).with_suffix(f".{kind}"))
    except (OSError, Untrusted):
        return None


def _replace(path: Path, content: bytes) -> None:
    trust.make_directory(path.parent, _DIRECTORY_MODE)
    trust.replace(path, content + b"\n", _FILE_MODE)


def remove(pin_dir: Path) -> None:
    """Forget all files, as `lbctl cleanup` does."""
    path_of(pin_dir).unlink(missing_ok=True)
    for kind in ("hints", *BESIDE):
        path_of(pin_dir).with_suffix(f".{kind}").unlink(missing_ok=True)


def said_by(pid: int, agent: int) -> bool:
    """Whether a record's `pid` is that of `agent` as `running_agent` names it: an agent in a
    container knows itself by another number."""
    return agent != 0 and pid in (agent, bpffs.own_pid(agent))


def running_agent(pin_dir: Path) -> int:
    """The process that holds the instance's lock, 0 if none does."""
    return bpffs.holder(pin_dir)
