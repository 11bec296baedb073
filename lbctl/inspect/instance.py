"""How an instance is doing: what its agent says, and what its maps show by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from ebpf.flowtable import FAMILIES, maps_of
from ebpf.instance import Instance
from ebpf.maps.hashes import HashMap
from lbctl import status
from lbctl.datapath.frontends import Frontends
from lbctl.datapath.reasons import reason_names
from lbctl.datapath.regions import region_of
from lbctl.datapath.tables import HashTable


class MapUse(msgspec.Struct, frozen=True):
    """One map, or the maps of one table. `entries` is None where every entry always exists;
    `capacity` is what it has room for now, `most` when it has grown. `flag` is the agent's option
    for a larger one, empty where there is none or no agent has said."""

    name: str
    kind: str
    entries: int | None
    capacity: int
    most: int
    bytes: int
    flag: str = ""


class InstanceStatus(msgspec.Struct, frozen=True):
    """All of `lbctl status`. Without an agent, what the last one said; it is not `ready` then."""

    ready: bool
    agent: int  # its process, 0 if none runs
    pin_dir: str
    node: str
    version: str
    services: int
    service_ports: int
    endpoints: int  # (service port, endpoint) pairs
    interfaces: int
    last_apply: str  # RFC 3339, empty if there was none
    last_apply_seconds: float
    taking_over: bool
    socket_lb: str  # off, host or all; empty without any agent's word
    xdp: str  # off, auto or on; empty without any agent's word
    drivers: tuple[status.DriverState, ...]
    xdp_others: tuple[str, ...]  # who would have a say about what drivers send on
    sockets_closed: int  # by the agent, since their endpoint had gone
    thread_restarts: int  # of the agent's, that ended or were stuck
    source: status.SourceState
    maps: tuple[MapUse, ...]
    reasons: dict[str, int]  # packets by what was decided about them
    warnings: tuple[str, ...]
    audit: status.Audited  # what the agent found broken, and put right
    fast_path: status.FastPathState
    passed: int  # packets that went past the stack


def read(instance: Instance) -> InstanceStatus:
    """The status of an open instance. Raises KernelError, LayoutError."""
    agent = status.running_agent(instance.pin_dir)
    said = status.read(instance.pin_dir)
    record = said or status.StatusRecord(0, "", "", str(instance.pin_dir))
    alive = status.said_by(record.pid, agent)
    return InstanceStatus(
        ready=alive and record.ready and status.age(instance.pin_dir) < status.OLD_SECONDS,
        agent=agent,
        pin_dir=str(instance.pin_dir),
        node=record.node,
        version=record.version,
        services=record.services,
        service_ports=record.service_ports,
        endpoints=record.endpoints,
        interfaces=record.interfaces,
        last_apply=record.last_apply,
        last_apply_seconds=record.last_apply_seconds,
        taking_over=record.taking_over,
        socket_lb=record.socket_lb,
        xdp=record.xdp,
        drivers=record.drivers,
        xdp_others=record.xdp_others,
        sockets_closed=record.sockets_closed,
        thread_restarts=record.thread_restarts,
        source=record.source,
        maps=tuple(sorted(_uses(instance, record.tables), key=lambda use: use.name)),
        reasons=reasons(instance),
        warnings=(*_of_agent(agent, said, instance.pin_dir), *record.warnings),
        audit=record.audit or status.Audited(),
        fast_path=record.fast_path,
        passed=passed(instance),
    )


def passed(instance: Instance) -> int:
    """How many packets went past the stack; 0 of programs that know no such way."""
    records = instance.cpus.records
    return int(records["passed"].sum()) if "passed" in (records.dtype.names or ()) else 0


def _of_agent(agent: int, said: status.StatusRecord | None, pin_dir: Path) -> list[str]:
    if not agent:
        return [
            "no agent runs: what it programmed stays in force, changes and new pods wait for "
            f"`lbctl agent --pin-dir {pin_dir}`"
        ]
    if said is None or not status.said_by(said.pid, agent):
        return [f"process {agent} holds the instance, and has not said how it is doing yet"]
    age = status.age(pin_dir)
    if age >= status.OLD_SECONDS:
        return [
            f"process {agent} has not said how it is doing for {age:.0f} s: it hangs, or cannot "
            f"write {status.path_of(pin_dir)}"
        ]
    return []


def reasons(instance: Instance) -> dict[str, int]:
    """Packets counted by reason, by its name in lower case; those never seen too."""
    sums = instance.counters.read_sum().tolist()
    names = reason_names(instance.enums)
    return {name: int(sums[number]) for number, name in names.items() if number < len(sums)}


# The agent says of one map of each kind how large it may become.
_GROWS_WITH = {"names": "services", "service_counters": "services", "backend_live": "backends"}


def _uses(instance: Instance, said: Mapping[str, status.TableUse]) -> Iterator[MapUse]:
    """Of each map, and of the flows of each family what all their maps are together."""
    of_flows = {name for family in FAMILIES for name in maps_of(family)}
    for name in instance.map_names():
        if name not in of_flows:
            table, room = instance.map(name), instance.map(name).max_entries
            if name == "frontends":
                room = Frontends(instance.frontends).room
            yield _use(
                said.get(_GROWS_WITH.get(name, name)), name, table.type, _entries(instance, name),
                room, table.memory_bytes,
            )  # fmt: skip
    for flows in instance.flow_tables:
        name, rooms = f"flows{flows.family}", flows.rooms()
        memory = sum(instance.map(part).memory_bytes for part in maps_of(flows.family))
        yield _use(said.get(name), name, "cells", rooms.used, rooms.cells, memory)


def _use(
    said: status.TableUse | None,
    name: str,
    kind: str,
    entries: int | None,
    capacity: int,
    memory: int,
) -> MapUse:
    most = max(capacity, said.most) if said else capacity
    return MapUse(name, kind, entries, capacity, most, memory, said.flag if said else "")


def _entries(instance: Instance, name: str) -> int | None:
    """How many entries are in use. Those of hashes are walked, in batches."""
    if name in ("services", "service_counters"):
        return _count(instance.names)
    if name in ("backends", "backend_live"):
        return int(np.count_nonzero(instance.backends.records["port"]))
    if name == "slots":
        return _slots(instance)
    if name == "frontends":
        return len(Frontends(instance.frontends))
    table = instance.map(name)
    return _count(table) if isinstance(table, HashMap) else None


def _count(table: HashTable) -> int:
    return sum(len(keys) for keys, _ in table.batches())


def _slots(instance: Instance) -> int:
    """Slots of all regions that services use; two sets may be one region."""
    records = instance.services.records
    words = np.unique(np.concatenate([records["cluster"], records["local"]]))
    return sum(length for _, length in {region_of(word) for word in words.tolist()})
