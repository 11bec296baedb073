"""What planning hands on: the writes of a plan, what may be cleared, and what each port has."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lbctl.addresses import Prefix
from lbctl.datapath.shares import Shape
from lbctl.model.records import ObjectKey
from lbctl.plan.alloc import Exhausted

CLUSTER: Final = "cluster"
LOCAL: Final = "local"
TABLES: Final = {CLUSTER: "cluster_table", LOCAL: "local_table"}

# Sorts by age: whether nobody says how old the object is, its seniority, then names. None of one
# that is programmed and was not seen yet: it keeps what it has until it is.
Age = tuple[bool, bytes, str, str, str] | None


class Settings(NamedTuple):
    """Fields of struct service by their names, all but the words."""

    flags: int = 0
    affinity: int = 0  # beats
    algorithm: int = 0
    slow_start: int = 0  # ticks
    near: int = 0
    spill_over: int = 0
    flows_leave: int = 0


NO_SETTINGS = Settings()


class TablePart(NamedTuple):
    """Places of `hash_tables`, and the backends that they are to lead to."""

    places: npt.NDArray[np.int64]
    backends: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Plan:
    """Writes by kind, in the order in which lbctl/program/writes.py carries them out."""

    names: list[tuple[int, str]] = field(default_factory=list)
    new_settings: list[tuple[int, Settings]] = field(default_factory=list)
    # New backends, as columns.
    backend_ids: list[int] = field(default_factory=list)
    backend_identities: list[bytes] = field(default_factory=list)
    backend_flags: list[int] = field(default_factory=list)
    backend_services: list[int] = field(default_factory=list)
    backend_weights: list[int] = field(default_factory=list)
    backend_since: list[int] = field(default_factory=list)
    reweighted: list[tuple[int, int]] = field(default_factory=list)  # backend, weight
    begun: list[tuple[int, int]] = field(default_factory=list)  # backend, the tick that it began at
    raised: list[tuple[int, int]] = field(default_factory=list)  # backend, flags before the switch
    slot_indices: list[int] = field(default_factory=list)
    slot_backends: list[int] = field(default_factory=list)
    shapes: list[tuple[int, Shape]] = field(default_factory=list)  # from which slot on
    tables: list[TablePart] = field(default_factory=list)
    words: list[tuple[int, str, int]] = field(default_factory=list)  # service, field, region word
    settings: list[tuple[int, Settings]] = field(default_factory=list)
    # Service and range: loadBalancerSourceRanges.
    ranges: list[tuple[int, Prefix]] = field(default_factory=list)
    frontends: list[tuple[bytes, int, int]] = field(default_factory=list)  # key, service, flags
    frontends_gone: list[bytes] = field(default_factory=list)
    ranges_gone: list[tuple[int, Prefix]] = field(default_factory=list)
    words_emptied: list[tuple[int, str, int]] = field(default_factory=list)
    lowered: list[tuple[int, int]] = field(default_factory=list)  # backend, flags after the switch
    # Backends that left, and the tick at which their flows are to end.
    ending: list[tuple[int, int]] = field(default_factory=list)
    # Not writes:
    failed: dict[str, Exhausted] = field(default_factory=dict)  # unchanged in the maps

    def writes(self) -> dict[str, int]:
        """Stores and map updates by kind; kinds without any are left out."""
        counts = {
            "names": len(self.names),
            "settings": len(self.new_settings) + len(self.settings),
            "backends": len(self.backend_ids),
            "weights": len(self.reweighted),
            "starts": len(self.begun),
            "backend flags": len(self.raised) + len(self.lowered),
            "slots": len(self.slot_indices),
            "shares": sum(len(shape.shares) for _, shape in self.shapes),
            "hash tables": sum(len(part.places) for part in self.tables),
            "region words": len(self.words) + len(self.words_emptied),
            "source ranges": len(self.ranges) + len(self.ranges_gone),
            "frontends": len(self.frontends) + len(self.frontends_gone),
        }
        return {kind: count for kind, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Freed:
    """Ids that no flow has any more, whose records are to be cleared before their next use."""

    services: list[int]
    backends: list[int]


@dataclass(slots=True)
class PortState:
    """What the maps hold of one service port."""

    id: int
    cluster: int = 0  # region words, or regions.UNKNOWN
    local: int = 0
    cluster_table: int = 0
    local_table: int = 0
    settings: Settings = NO_SETTINGS
    shaped: bool = False  # weights, or slots that stand for two, may be there
    made_of: dict[str, bytes] = field(default_factory=dict)  # tables, by their field: what is in
    frontends: tuple[tuple[bytes, int], ...] = ()  # asked for: key and flags
    ranges: tuple[Prefix, ...] = ()
    # Who it is, once its object was seen by this agent.
    name: str = ""
    service: ObjectKey | None = None
    seniority: bytes = b""
    endpoints: int = 0  # in either set


def age_of(states: list[PortState | None], number: int) -> Age:
    """That of a service port by its id."""
    state = states[number]
    if state is None or state.service is None:
        return None
    key = state.service
    return not state.seniority, state.seniority, key.namespace, key.name, state.name
