"""What one service port means on this node: the records that resolving hands to planning."""

from __future__ import annotations

from typing import Final

import msgspec

from lbctl.addresses import Prefix
from lbctl.model.records import ALGORITHMS, DEFAULT_WEIGHT, Algorithm, ObjectKey

# A port in one family, within its service: family, the port's name, protocol.
Target = tuple[int, str, int]


class FrontendKind:
    """What an address is to its service: `enum frontend_flag` of bpf_src/consts.h, without the
    prefix. ADDRESS marks a live ClusterIP itself (port 0, protocol 0), OUTER any other address;
    planning adds those, and what writes backends ENDPOINT.

    Plain numbers: every port of a start asks several times, and with the members of an enum that
    would take ten times as long.
    """

    CLUSTER_IP: Final = 1
    NODE_PORT: Final = 2
    EXTERNAL_IP: Final = 4
    LOAD_BALANCER: Final = 8
    ADDRESS: Final = 16
    SOURCE_RANGES: Final = 32
    SHARED: Final = 64
    SOCKETS: Final = 128  # on loopback
    OUTER: Final = 256
    ENDPOINT: Final = 512


class Endpoint(msgspec.Struct, frozen=True, gc=False, order=True):
    """A backend. Identity within a service port is (address, port)."""

    address: bytes  # 16 bytes
    port: int
    local: bool  # on this node
    weight: int = DEFAULT_WEIGHT
    near: bool = False  # by what its service calls near


class Choice(msgspec.Struct, frozen=True, gc=False):
    """How endpoints are chosen, settled: see model/records.py, Balancing. `slow_start` 0: none;
    whether there are near endpoints, they say themselves. `dsr`: what comes from outside goes to
    other nodes' endpoints whole."""

    algorithm: Algorithm = ALGORITHMS[0]
    slow_start: float = 0.0
    spill_over: float = 0.0
    flows_leave: float | None = None
    dsr: bool = False

    @property
    def by_hash(self) -> bool:
        """Whether it is the client that decides: then the choice is made from a table."""
        return self.algorithm in BY_HASH


# Endpoints of a set whose weights count: more of them are all alike.
MOST_WEIGHTED = 1 << 16
BY_HASH = ("maglev", "source-hash")
AT_RANDOM = Choice()


class Frontend(msgspec.Struct, frozen=True, gc=False, order=True):
    """An address and port that clients call."""

    address: bytes  # 16 bytes
    port: int
    protocol: int
    kind: int  # of FrontendKind, and flags


class ResolvedPort(msgspec.Struct, frozen=True, gc=False):
    """One port of a service in one family, all its addresses and both of its endpoint sets.

    `cluster` is empty only if nothing anywhere is usable, and then it refuses (rule 9 of
    docs/semantics.md); an empty `local` drops if `local_drop` says so.
    """

    name: str  # see lbctl/model/names.py
    protocol: int
    frontends: tuple[Frontend, ...]
    cluster: tuple[Endpoint, ...]  # usable anywhere, sorted
    local: tuple[Endpoint, ...]  # usable on this node, sorted
    local_drop: bool
    internal_local: bool  # pods and others calling the ClusterIP use `local`
    external_local: bool  # traffic from outside to the other addresses uses `local`
    affinity_seconds: int  # 0: none
    source_ranges: tuple[Prefix, ...]  # of this family, empty: no restriction
    warnings: tuple[str, ...]
    hints: str  # why topology hints narrow `cluster`, or why not
    service: ObjectKey
    seniority: bytes = b""  # of the service: the older sorts first; empty: nobody says
    choice: Choice = AT_RANDOM
