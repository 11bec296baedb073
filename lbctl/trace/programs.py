"""The programs of a trace: those that decide about a first packet, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from ebpf.compile import compiler
from ebpf.layouts import PROGRAM_ARRAYS, Bundle
from ebpf.programs import Generation
from lbctl.trace.flows import Arrival

# By where a flow enters. What starts on the node is chosen for by the same code at its sockets.
ENTRIES: Final[Mapping[Arrival, str]] = {
    "pod": "entry_from_pod",
    "uplink": "entry_from_net",
    "node": "entry_from_node",
}
# What the entry hands packets to. The rest of the bundle handles flows that exist, and writes to
# the flow tables; what is not loaded cannot.
_PARTS = tuple(
    f"{part}{family}"
    for part in ("from_pod", "from_net", "coming_in", "connect", "choose", "sctp", "refuse")
    for family in "46"
)


def trace_bundle() -> Bundle:
    """The trace variant, reduced to what a trace runs. From the cache; raises CompileError."""
    bundle = compiler.bundle("trace")
    wanted = {name: bundle.programs[name] for name in (*ENTRIES.values(), *_PARTS)}
    return msgspec.structs.replace(bundle, programs=wanted)


def load(bundle: Bundle, map_fds: Mapping[str, int]) -> Generation:
    """The programs of `bundle` on these maps, with a program array of their own that goes with
    them. Raises KernelError."""
    return Generation.load(bundle, map_fds, partial=True)


def maps_of(bundle: Bundle) -> list[str]:
    """Names of the maps that the programs of a bundle work on, but for program arrays."""
    return [name for name in bundle.maps if name not in PROGRAM_ARRAYS]
