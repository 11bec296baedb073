"""Service ports as `ipvsadm -Ln` shows its virtual servers, for those who know that view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from lbctl.inspect.backends import BackendRow
from lbctl.inspect.services import ServiceRow

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

    Its scheduler is called random: every endpoint is as likely. One that has left is there with
    weight 0 as long as it has flows, as ipvs has it. An endpoint has its flows through whatever
    address, so they are shown at each.
    """
    yield from _HEAD
    for row in rows:
        for address in row.addresses:
            kept = f" persistent {row.affinity_seconds}" if row.affinity_seconds else ""
            yield f"{row.name.protocol:<4} {address.endpoint} random{kept}"
            for backend in backends.get(row.name.text, ()):
                active, inactive = flows.get((row.name.text, backend.endpoint), (0, 0))
                weight = int(backend.serving)
                yield (
                    f"  -> {backend.endpoint:<28} Masq    {weight:<6} {active:<10} {inactive:<9}"
                ).rstrip()
