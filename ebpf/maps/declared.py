"""The maps of bpf_src/maps.h, for Python: each one's name, kind and size stand here alone.

What opens maps derives from `Maps` and has them as attributes, typed by what it makes of each kind.
"""

from __future__ import annotations

from typing import (
    Annotated,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    get_type_hints,
)

import msgspec

from ebpf.errors import LayoutError
from ebpf.layouts import ARRAY, HASH, LPM_TRIE, LRU_HASH, PERCPU_ARRAY, RINGBUF, MapSpec

# A number that a person can choose; see `Sizes`.
Limit = Literal["services", "endpoints", "flows"]
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)
# What may be left out of the data path; see `Sizes`. Empty: nothing.
Part = Literal["", "sockets", "fast_path"]

Hash = TypeVar("Hash", covariant=True)
Array = TypeVar("Array", covariant=True)
PerCpu = TypeVar("PerCpu", covariant=True)


class Records(Protocol):
    """What programs tell, one record after the other: ebpf.maps.ring.Ring."""

    def read(self) -> list[bytes]: ...


class Share(msgspec.Struct, frozen=True):
    """As many entries as a chosen number says, `times` over."""

    limit: Limit
    times: int = 1


class Constant(msgspec.Struct, frozen=True):
    """As many entries as a constant of consts.h says."""

    name: str


class Table(msgspec.Struct, frozen=True):
    """Elements for a table in buckets (ebpf/maps/buckets.py) with as many keys as `shares` say
    together."""

    shares: tuple[Share, ...]


class Power(msgspec.Struct, frozen=True):
    """As many entries as a constant of consts.h is the logarithm of; one while that `part` of the
    data path is not used, see `Sizes`."""

    name: str
    part: Part = ""


class Cpus(msgspec.Struct, frozen=True):
    """One entry for each CPU that there can be."""


class Buckets(msgspec.Struct, frozen=True):
    """For the buckets of a bank of the table of flows, each with so many entries. The first bank is
    made for the number of flows; the second only when the table grows."""

    first: bool
    each: int = 1


class Fixed(msgspec.Struct, frozen=True):
    """The same number of entries on every machine, or one without that `part`."""

    entries: int = 1
    part: Part = ""


class Learned(msgspec.Struct, frozen=True):
    """Few entries at first, doubled as programs fill them, up to `most`; one while that `part` of
    the data path is not used, see `Sizes`. Without a part, no more than there may be flows."""

    most: int
    part: Part = ""


Size = Share | Constant | Table | Power | Cpus | Buckets | Fixed | Learned


# Entries come from programs, all the time: a map that takes another's place gets late ones too.
FILLED = "filled by programs"
# Programs add to numbers that are there: what they add to a map whose place another took is added
# to that one.
COUNTED = "counted by programs"

_FRAGMENTS = Fixed(4096)
_SOCKETS = Learned(65536, "sockets")  # of the node's own processes that call by a name of ours


class Maps(Generic[Hash, Array, PerCpu]):
    """Every map but the program array, which is a generation's.

    A service port has one id and up to five frontends on average (an address of its own, a port of
    the node, outer addresses, and each address by itself); the table of frontends has the endpoints
    and their addresses too. Slots and backends have room for the old set and the new one at once,
    slots for two regions besides. A flow is two cells, or four, see `Buckets`.
    """

    def former(self) -> Maps[Hash, Array, PerCpu] | None:
        """The maps as programs see them that are still in place, if those are others."""
        return None

    frontends: Annotated[Array, Table((Share("services", 5), Share("endpoints", 2)))]
    source_ranges: Annotated[Hash, Share("services")]
    names: Annotated[Hash, Share("services")]
    services: Annotated[Array, Share("services")]
    service_counters: Annotated[Array, Share("services"), COUNTED]
    slots: Annotated[Array, Share("endpoints", 4)]
    backends: Annotated[Array, Share("endpoints", 2)]
    backend_live: Annotated[Array, Share("endpoints", 2), COUNTED]
    hash_tables: Annotated[Array, Share("endpoints", 2)]
    config: Annotated[Array, Fixed()]
    counters: Annotated[PerCpu, Constant("REASON_MAX")]
    stash: Annotated[Array, Constant("STASH_SLOTS")]
    stash_buckets: Annotated[Array, Constant("STASH_BUCKETS")]
    devices: Annotated[Hash, Fixed(4096)]
    xdp_devices: Annotated[Hash, Fixed(256)]
    fast_devices: Annotated[Hash, Fixed(4096, "fast_path")]
    hops4: Annotated[PerCpu, Power("HOP_BITS", "fast_path")]
    hops6: Annotated[PerCpu, Power("HOP_BITS", "fast_path")]
    xdp_hops4: Annotated[PerCpu, Power("XDP_HOP_BITS", "fast_path")]
    xdp_hops6: Annotated[PerCpu, Power("XDP_HOP_BITS", "fast_path")]
    affinity: Annotated[Hash, Learned(131072), FILLED]
    socket_choices: Annotated[Hash, _SOCKETS, FILLED]
    socket_peers: Annotated[Hash, _SOCKETS, FILLED]
    table4a: Annotated[Array, Fixed()]
    table4b: Annotated[Array, Fixed()]
    control4a: Annotated[Array, Buckets(True)]
    control4b: Annotated[Array, Buckets(False)]
    cells4a: Annotated[Array, Buckets(True, 8)]
    cells4b: Annotated[Array, Buckets(False, 8)]
    held4: Annotated[Array, Power("HOLDER_BITS")]
    table6a: Annotated[Array, Fixed()]
    table6b: Annotated[Array, Fixed()]
    control6a: Annotated[Array, Buckets(True)]
    control6b: Annotated[Array, Buckets(False)]
    cells6a: Annotated[Array, Buckets(True, 8)]
    cells6b: Annotated[Array, Buckets(False, 8)]
    states6a: Annotated[Array, Buckets(True, 8)]
    states6b: Annotated[Array, Buckets(False, 8)]
    held6: Annotated[Array, Power("HOLDER_BITS")]
    flow_events: Annotated[Records, Fixed(1 << 20)]  # 8192 events: a tenth of a second's worth
    cpus: Annotated[Array, Cpus()]
    fragments4: Annotated[Hash, _FRAGMENTS, FILLED]
    fragments6: Annotated[Hash, _FRAGMENTS, FILLED]


class Use(msgspec.Struct, frozen=True):
    """What `Maps` says of one map. `kinds` are the kernel's numbers of the types it may have."""

    kinds: tuple[int, ...]
    size: Size
    filled: bool
    counted: bool


_KINDS = {
    Hash: (HASH, LRU_HASH, LPM_TRIE),
    Array: (ARRAY,),
    PerCpu: (PERCPU_ARRAY,),
    Records: (RINGBUF,),
}


def _declared() -> dict[str, Use]:
    found = {}
    for name, hint in get_type_hints(Maps, include_extras=True).items():
        kind, size, *rest = get_args(hint)
        found[name] = Use(_KINDS[kind], size, FILLED in rest, COUNTED in rest)
    return found


USES = _declared()

# Maps of earlier versions, which are let go once no program uses them.
FORMER: Final = tuple(
    name
    for name in (
        "service_filter",
        "backend_filter",
        "table_state",
        *(f"{name}{family}" for name in ("answers", "ended", "fragments") for family in "46"),
        *(f"flows{family}{kind}" for kind in ("", "_lru") for family in "46"),
    )
    if name not in USES
)


def use_of(spec: MapSpec) -> Use:
    """What is declared of a map. Raises LayoutError if it is forgotten here, or of another kind."""
    use = USES.get(spec.name)
    where = "Maps in ebpf/maps/declared.py says what each map of bpf_src/maps.h is, and its size."
    if use is None:
        raise LayoutError(f"map {spec.name} is not declared for Python", where)
    if spec.type not in use.kinds:
        raise LayoutError(f"map {spec.name} is declared as another kind than {spec.type}", where)
    return use


def limits_of(name: str) -> set[Limit]:
    """Which chosen numbers a map's size follows, none if that of the machine or the code."""
    use = USES.get(name)
    match use and use.size:
        case Share(limit):
            return {limit}
        case Table(shares):
            return {share.limit for share in shares}
        case _:
            return set()


def limit_of(name: str) -> Limit | None:
    """Which chosen number a map's size follows, None if that of the machine or the code."""
    match (use := USES.get(name)) and use.size:
        case Share(limit) | Table((Share(limit), *_)):
            return limit
        case _:
            return None
