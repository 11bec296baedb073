"""The endpoint sets and addresses of one service port: as they are wanted, and as programmed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lbctl.datapath import consts
from lbctl.datapath.records import IDENTITY_BYTES, frontend_key
from lbctl.datapath.regions import Contents, Members, region_of
from lbctl.model.records import DEFAULT_WEIGHT
from lbctl.resolve.ports import Endpoint, ResolvedPort

_PLAIN = {DEFAULT_WEIGHT}
NOBODY = Members([], b"", b"")


class HeldSets:
    """The sets of a service port as they are programmed."""

    __slots__ = ("_held", "_here", "_whole", "words")

    def __init__(self, words: tuple[int, int], whole: Members, here: Members) -> None:
        """The two region words, and what is in the sets: the cluster's, and that of this node."""
        self.words = words
        self._whole = whole
        self._here = here
        self._held: dict[bytes, tuple[int, int]] | None = None

    @classmethod
    def read(cls, contents: Contents, ports: Sequence[tuple[int, int]]) -> list[HeldSets]:
        """Of each of these ports, by its region words."""
        # An empty set is nothing to read, nor is one a second time: that is most of those here.
        regions = {word: None for words in ports for word in words if word and region_of(word)[1]}
        members = dict(zip(regions, contents.members([*regions]) if regions else (), strict=True))
        return [
            cls(words, members.get(words[0], NOBODY), members.get(words[1], NOBODY))
            for words in ports
        ]

    @property
    def cluster(self) -> list[int]:
        """Ids of its backends."""
        return self._whole.ids

    @property
    def local(self) -> list[int]:
        """Those of the set of this node."""
        return self._here.ids

    @property
    def held(self) -> dict[bytes, tuple[int, int]]:
        """Id and flags of every endpoint in either set, by identity."""
        if self._held is None:
            self._held = _by_identity(self._whole)
            if self._here.ids and self._here is not self._whole:
                self._held |= _by_identity(self._here)
        return self._held

    def are(self, wanted: WantedSets) -> bool:
        """Whether they are these already, in this order, and are marked so: then their words say
        so too, where no endpoint has a weight."""
        cluster, local = self.words
        return (
            _is(self._whole, wanted.cluster, wanted)
            and _is(self._here, wanted.local, wanted)
            and (bool(wanted.cluster) or not cluster)
            and (bool(wanted.local) or local == wanted.empty)
            and (cluster == local or wanted.cluster != wanted.local)
            and not (cluster | local) & consts.REGION_CLOSED
        )

    def ids_of(self, identities: list[bytes], fresh: dict[bytes, int]) -> list[int]:
        """The backend ids of these endpoints, new ones from `fresh`."""
        held = self.held
        if not held:
            return [fresh[i] for i in identities]
        return [fresh[i] if i in fresh else held[i][0] for i in identities]


class WantedSets:
    """What a port resolves to, in the planner's terms."""

    __slots__ = ("cluster", "empty", "flags", "local", "near", "shaped", "weights")

    def __init__(self, port: ResolvedPort) -> None:
        plain = consts.BACKEND_SERVING | consts.BACKEND_IN_CLUSTER
        here = plain | consts.BACKEND_LOCAL
        # By identity, for every endpoint in either set, in the order of the sets.
        self.flags = {
            e.address + e.port.to_bytes(2, "big"): here if e.local else plain for e in port.cluster
        }
        self.cluster = list(self.flags)
        self.local = list(dict.fromkeys(map(_identity, port.local)))
        local = consts.BACKEND_SERVING | consts.BACKEND_IN_LOCAL | consts.BACKEND_LOCAL
        for identity in self.local:
            self.flags[identity] = self.flags.get(identity, 0) | local
        self.empty = consts.REGION_DROP if port.local_drop else 0  # what an empty `local` says
        self.near = 0  # so many of `cluster` come first, if there are others
        self.weights: dict[bytes, int] = {}  # of those whose weight is not the default
        for members in (port.cluster, port.local):
            if {e.weight for e in members} - _PLAIN:
                self._weigh(members)
        if port.choice.spill_over:
            self._order(port)
        self.shaped = bool(self.weights or self.near)

    def weight(self, identity: bytes) -> int:
        """Of one of the endpoints."""
        return self.weights.get(identity, DEFAULT_WEIGHT)

    def weights_of(self, identities: list[bytes]) -> list[int]:
        """Of each of these endpoints."""
        if not self.weights:
            return [DEFAULT_WEIGHT] * len(identities)
        return [self.weight(identity) for identity in identities]

    def is_closed(self, members: list[bytes]) -> bool:
        """Whether none of these is to get anything new."""
        closed = consts.BACKEND_CLOSED
        return bool(self.weights) and all(self.flags[m] & closed for m in members)

    def _weigh(self, members: Iterable[Endpoint]) -> None:
        for endpoint in members:
            if endpoint.weight == DEFAULT_WEIGHT:
                continue
            identity = _identity(endpoint)
            self.weights[identity] = endpoint.weight
            if not endpoint.weight:
                self.flags[identity] |= consts.BACKEND_CLOSED

    def _order(self, port: ResolvedPort) -> None:
        """Those that are to get nothing are neither: a part must have somebody to give it to."""
        near = {_identity(e) for e in port.cluster if e.near and e.weight}
        if near and any(e.weight and not e.near for e in port.cluster):
            self.near = len(near)
            self.cluster.sort(key=lambda identity: identity not in near)


def _by_identity(members: Members) -> dict[bytes, tuple[int, int]]:
    if not members.ids:  # as of every port that is new
        return {}
    raw, width = members.identities, IDENTITY_BYTES
    pieces = [raw[start : start + width] for start in range(0, len(raw), width)]
    return dict(zip(pieces, zip(members.ids, members.flags, strict=True), strict=True))


def _is(held: Members, identities: list[bytes], wanted: WantedSets) -> bool:
    return held.identities == b"".join(identities) and held.flags == bytes(
        [wanted.flags[identity] for identity in identities]
    )


def _identity(endpoint: Endpoint) -> bytes:
    return endpoint.address + endpoint.port.to_bytes(2, "big")


def frontends_of(port: ResolvedPort) -> tuple[tuple[bytes, int], ...]:
    """Keys with flags."""
    found: dict[bytes, int] = {}
    for frontend in port.frontends:
        key = frontend_key(frontend.address, frontend.port, frontend.protocol)
        found[key] = found.get(key, 0) | frontend.kind
    return tuple(found.items())
