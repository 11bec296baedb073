"""The endpoint sets and addresses of one service port: as they are wanted, and as programmed."""

from collections.abc import Iterable

from lbctl.datapath import consts
from lbctl.datapath.records import frontend_key
from lbctl.datapath.regions import Contents
from lbctl.model.records import DEFAULT_WEIGHT
from lbctl.resolve.ports import Endpoint, ResolvedPort

_PLAIN = {DEFAULT_WEIGHT}


class HeldSets:
    """The sets of a service port as they are programmed."""

    __slots__ = ("cluster", "held", "local", "words")

    def __init__(self, contents: Contents, cluster: int, local: int) -> None:
        """From the two region words."""
        self.words = (cluster, local)
        self.cluster = contents.region(cluster)
        same = local == cluster
        self.local = self.cluster if same else contents.region(local)
        ids = self.cluster if same else list(dict.fromkeys(self.cluster + self.local))
        self.held: dict[bytes, tuple[int, int]] = {}  # identity -> id, flags
        if ids:
            for number, (identity, flags) in zip(ids, contents.backends(ids), strict=True):
                self.held[identity] = (number, flags)

    def ids_of(self, identities: list[bytes], fresh: dict[bytes, int]) -> list[int]:
        """The backend ids of these endpoints, new ones from `fresh`."""
        held = self.held
        if not held:
            return [fresh[i] for i in identities]
        return [fresh[i] if i in fresh else held[i][0] for i in identities]


class WantedSets:
    """What a port resolves to, in the planner's terms."""

    __slots__ = ("cluster", "flags", "local", "local_drop", "near", "shaped", "weights")

    def __init__(self, port: ResolvedPort) -> None:
        plain = consts.BACKEND_SERVING | consts.BACKEND_IN_CLUSTER
        here = plain | consts.BACKEND_LOCAL
        # By identity, for every endpoint in either set, in the order of the sets.
        self.flags = {_identity(e): here if e.local else plain for e in port.cluster}
        self.cluster = list(self.flags)
        self.local = list(dict.fromkeys(map(_identity, port.local)))
        local = consts.BACKEND_SERVING | consts.BACKEND_IN_LOCAL | consts.BACKEND_LOCAL
        for identity in self.local:
            self.flags[identity] = self.flags.get(identity, 0) | local
        self.local_drop = port.local_drop
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


def _identity(endpoint: Endpoint) -> bytes:
    return endpoint.address + endpoint.port.to_bytes(2, "big")


def frontends_of(port: ResolvedPort) -> tuple[tuple[bytes, int], ...]:
    """Keys with flags."""
    found: dict[bytes, int] = {}
    for frontend in port.frontends:
        key = frontend_key(frontend.address, frontend.port, frontend.protocol)
        found[key] = found.get(key, 0) | int(frontend.kind)
    return tuple(found.items())
