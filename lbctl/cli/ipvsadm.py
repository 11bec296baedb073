"""Service ports as `ipvsadm -Ln` shows its virtual servers, for those who know that view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lbctl.inspect.backends import BackendRow
from lbctl.inspect.services import ServiceRow

# ipvs' names, where it has one; random is none of its.
_SCHEDULERS = {
    "round-robin": "rr",
    "least-connections": "lc",
    "maglev": "mh",
    "source-hash": "sh",
}
_WEIGHTED = {"round-robin": "wrr", "least-connections": "wlc"}

# ipvsadm's own, so that scripts which cut its columns find theirs.
_HEAD = (
    "Prot LocalAddress:Port Scheduler Flags",
    "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
)


def lines(
    rows: Iterable[ServiceRow],
    backends: Mapping[str, Sequence[BackendRow]],
    flows: Mapping[tuple[str, str], tuple[int, int]],
) -> Iterator[str]:
    """A virtual server for each address, below it the endpoints. `backends` are by the text of the
    service port; `flows` are established ones and others, by that and the endpoint.

    Weights are as they are programmed: 100 is what ipvs calls 1. An endpoint that has left is
    there with weight 0 as long as it has flows, as ipvs has it. An endpoint has its flows through
    whatever address, so they are shown at each.
    """
    yield from _HEAD
    for row in rows:
        members = backends.get(row.name.text, ())
        scheduler = _scheduler(row.algorithm, members)
        for address in row.addresses:
            kept = f" persistent {row.affinity_seconds}" if row.affinity_seconds else ""
            yield f"{row.name.protocol:<4} {address.endpoint} {scheduler}{kept}"
            for backend in members:
                active, inactive = flows.get((row.name.text, backend.endpoint), (0, 0))
                weight = backend.weight if backend.serving else 0
                yield (
                    f"  -> {backend.endpoint:<28} Masq    {weight:<6} {active:<10} {inactive:<9}"
                ).rstrip()


def _scheduler(algorithm: str, members: Iterable[BackendRow]) -> str:
    """By weight if the endpoints that serve have different ones."""
    names = _SCHEDULERS
    if len({member.weight for member in members if member.serving}) > 1:
        names = names | _WEIGHTED
    return names.get(algorithm, algorithm)
