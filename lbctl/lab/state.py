"""What is remembered of a lab, and where its parts lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from ebpf.errors import LbError
from lbctl.lab import cgroup
from lbctl.lab.process import ProcessId
from lbctl.lab.topology import Node, Outside, Pod, Topology, check_name

RUN = Path("/run/lbctl/lab")
PINS = Path("/sys/fs/bpf/lbctl-lab")


class AgentOptions(msgspec.Struct, frozen=True):
    """What every agent of a lab is started with; small tables, since several nodes share memory."""

    services: int = 4096
    endpoints: int = 16384
    flows: int = 16384
    extra: tuple[str, ...] = ()  # further arguments of `lbctl agent`


class State(msgspec.Struct, frozen=True):
    """Content of lab.json. Written before anything is made, so that `down` always knows."""

    topology: Topology
    builder: ProcessId
    phase: Literal["building", "up"] = "building"
    options: AgentOptions | None = None  # None: a lab without agents
    agents: dict[str, ProcessId] = {}  # by node name; msgspec copies the default


class Paths(msgspec.Struct, frozen=True):
    """Where the parts of the lab called `lab` lie."""

    lab: str

    @property
    def run(self) -> Path:
        return RUN / check_name(self.lab)

    @property
    def state(self) -> Path:
        return self.run / "lab.json"

    @property
    def manifests(self) -> Path:
        """The directory of Kubernetes objects that all agents of the lab watch."""
        return self.run / "manifests"

    @property
    def pins(self) -> Path:
        return PINS / check_name(self.lab)

    def log(self, node: str) -> Path:
        return self.run / f"{node}.log"

    def pin_dir(self, node: str) -> Path:
        return self.pins / node

    def cgroup(self, member: Node | Pod | Outside) -> Path:
        """A node's cgroup holds those of its pods, as on a real node."""
        root = cgroup.root_of(self.lab)
        return root / member.node / member.name if isinstance(member, Pod) else root / member.name


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.rename(path)


def save(paths: Paths, state: State) -> None:
    write_atomically(paths.state, msgspec.json.encode(state))


def load(name: str) -> State:
    """The state of a lab that exists; LbError names those that do."""
    try:
        return msgspec.json.decode(Paths(name).state.read_bytes(), type=State)
    except FileNotFoundError:
        names = ", ".join(names_of_labs())
        hint = f"Existing labs: {names} (--name)." if names else "Build one with `lbctl lab up`."
        raise LbError(f"there is no lab {name!r}", hint, exit_code=3) from None
    except msgspec.DecodeError as error:
        raise LbError(
            f"{Paths(name).state} is not readable: {error}",
            f"`lbctl lab down --name {name}` removes the lab.",
        ) from None


def names_of_labs() -> list[str]:
    try:
        return sorted(entry.name for entry in RUN.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []
