"""What planning hands on: the writes of a plan, what may be cleared, and what each port has."""

from dataclasses import dataclass, field
from typing import Final

from lbctl.addresses import Prefix
from lbctl.model.records import ObjectKey
from lbctl.plan.alloc import Exhausted

CLUSTER: Final = "cluster"
LOCAL: Final = "local"


@dataclass(frozen=True, slots=True)
class Plan:
    """Writes by kind, in the order in which lbctl/program/writes.py carries them out."""

    names: list[tuple[int, str]] = field(default_factory=list)
    new_settings: list[tuple[int, int, int]] = field(default_factory=list)  # id, flags, affinity
    # New backends, as columns.
    backend_ids: list[int] = field(default_factory=list)
    backend_identities: list[bytes] = field(default_factory=list)
    backend_flags: list[int] = field(default_factory=list)
    backend_services: list[int] = field(default_factory=list)
    raised: list[tuple[int, int]] = field(default_factory=list)  # backend, flags before the switch
    slot_indices: list[int] = field(default_factory=list)
    slot_backends: list[int] = field(default_factory=list)
    words: list[tuple[int, str, int]] = field(default_factory=list)  # service, field, region word
    settings: list[tuple[int, int, int]] = field(default_factory=list)
    # Service and range: loadBalancerSourceRanges.
    ranges: list[tuple[int, Prefix]] = field(default_factory=list)
    frontends: list[tuple[bytes, int, int]] = field(default_factory=list)  # key, service, flags
    frontends_gone: list[bytes] = field(default_factory=list)
    ranges_gone: list[tuple[int, Prefix]] = field(default_factory=list)
    words_emptied: list[tuple[int, str, int]] = field(default_factory=list)
    lowered: list[tuple[int, int]] = field(default_factory=list)  # backend, flags after the switch
    # Not writes:
    failed: dict[str, Exhausted] = field(default_factory=dict)  # unchanged in the maps

    def writes(self) -> dict[str, int]:
        """Stores and map updates by kind; kinds without any are left out."""
        counts = {
            "names": len(self.names),
            "settings": len(self.new_settings) + len(self.settings),
            "backends": len(self.backend_ids),
            "backend flags": len(self.raised) + len(self.lowered),
            "slots": len(self.slot_indices),
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
    flags: int = 0
    affinity: int = 0  # beats
    frontends: tuple[tuple[bytes, int], ...] = ()  # asked for: key and flags
    ranges: tuple[Prefix, ...] = ()
    # Who it is, once its object was seen by this agent.
    name: str = ""
    service: ObjectKey | None = None
    seniority: bytes = b""
    endpoints: int = 0  # in either set
