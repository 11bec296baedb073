"""Series per service port and per endpoint: bounded in number, and cheap for thousands.

prometheus-client writes a sample in some five microseconds; at ten thousand services of six samples
that would be a third of a second. So what is many is written here, from columns of numpy, with each
port's labels written once and kept. At most as many ports have series as the settings say: if there
are more, those with the most traffic of late.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from prometheus_client.core import Metric

from lbctl.addresses import format_endpoint
from lbctl.datapath.tables import Records
from lbctl.inspect import counts
from lbctl.inspect.counts import CountTables, ServiceCounts
from lbctl.metrics import families
from lbctl.model.names import PortName

HALF_LIFE_SECONDS: Final = 600.0  # of traffic, in judging who has the most

Numbers = npt.NDArray[np.float64]


class Bounds(msgspec.Struct, frozen=True):
    """How much may be shown: so many service ports, and endpoints of these services alone
    (namespace/name)."""

    services: int
    endpoints_of: frozenset[str] = frozenset()


class Labels(msgspec.Struct, frozen=True):
    """What a port's samples have between their braces, and what it is told by."""

    text: str
    service: str
    family: str


class Activity:
    """How busy ports have been of late, by id: traffic counts half after each half-life."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._before = np.zeros(0, np.float64)
        self._scores = np.zeros(0, np.float64)

    def scores(self, found: ServiceCounts) -> Numbers:
        """One per row. What ids that are not in it had is forgotten."""
        now = self._clock()
        decay = 0.5 ** ((now - self._at) / HALF_LIFE_SECONDS)
        totals = found.totals
        sums = (totals["packets_in"] + totals["packets_out"] + totals["connections"]).astype(float)
        ids = found.ids
        room = int(ids.max()) + 1 if len(ids) else 0
        before, kept = _fitted(self._before, room)[ids], _fitted(self._scores, room)[ids]
        # An id that begins anew is another port's.
        fresh = sums < before
        scores: Numbers = np.where(fresh, sums, kept * decay + sums - before)
        self._at = now
        self._before, self._scores = np.zeros(room), np.zeros(room)
        self._before[ids], self._scores[ids] = sums, scores
        return scores


class ServiceSeries:
    """Reads and writes them; one scrape at a time."""

    def __init__(
        self,
        tables: CountTables,
        bounds: Callable[[], Bounds],
        carried: Callable[[], Records | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`carried` says, by service id, what flows had carried a moment ago, those that live
        included: to look at each now would take too long. None: it is not known yet."""
        self._tables = tables
        self._bounds = bounds
        self._carried = carried
        self._activity = Activity(clock)
        self._labels: dict[bytes, Labels] = {}

    def scrape(self) -> tuple[list[Metric], str]:
        """The few that are about all services, and the text of the many."""
        bounds = self._bounds()
        carried = self._carried()
        found = counts.of_services(self._tables, carried)
        self._labels = {text: self._labels.get(text) or _labels(text) for text in found.texts}
        rows = [self._labels[text] for text in found.texts]
        places: dict[str, int] = {}
        place = np.fromiter(
            (places.setdefault(row.text, len(places)) for row in rows), np.int64, len(rows)
        )
        shown = _busiest(_summed(self._activity.scores(found), place, places), bounds.services)
        texts = list(places)
        chosen = [texts[i] for i in shown.tolist()]
        metrics = [
            families.NO_LOCAL.metric(_alone(found, rows)),
            families.OMITTED.metric(len(places) - len(chosen)),
            families.FLOWS.metric(_by_family(found.live, rows)),
        ]
        parts = [*_of_services(found, place, len(places), shown, chosen, carried is not None)]
        if bounds.endpoints_of:
            named = {
                int(number): row
                for number, row in zip(found.ids, rows, strict=True)
                if row.service in bounds.endpoints_of
            }
            parts += _of_endpoints(self._tables, named)
        return metrics, "".join(parts)


def _of_services(
    found: ServiceCounts,
    place: npt.NDArray[np.int64],
    size: int,
    shown: npt.NDArray[np.int64],
    chosen: Sequence[str],
    whole: bool,
) -> Iterator[str]:
    """Without packets and bytes unless those are `whole`: what is less than an agent before this
    one said would be taken for a restart of the counters."""

    def lines(column: counts.Column, more: str = "") -> list[str]:
        sums = np.zeros(size, np.uint64)
        np.add.at(sums, place, column)
        values = zip(chosen, sums[shown].tolist(), strict=True)
        return [f"{{{labels}{more}}} {value}" for labels, value in values]

    totals = found.totals
    yield families.CONNECTIONS.text(lines(totals["connections"]))
    yield families.ACTIVE.text(lines(found.live))
    if not whole:
        return
    for family, what in ((families.PACKETS, "packets"), (families.BYTES, "bytes")):
        ways = (lines(totals[f"{what}_{way}"], f',direction="{way}"') for way in ("in", "out"))
        yield family.text([line for way in ways for line in way])


def _of_endpoints(tables: CountTables, named: Mapping[int, Labels]) -> Iterator[str]:
    """An endpoint that left and came back has two rows: both are one series."""
    found = counts.of_endpoints(tables, np.fromiter(named, np.uint32, len(named)))
    serving: dict[str, int] = {}
    active: dict[str, int] = {}
    rows = zip(found.records, found.serving.tolist(), found.live.tolist(), strict=True)
    for record, serves, flows in rows:
        labels = f'{named[int(record["service"])].text},endpoint="{_endpoint(record)}"'
        serving[labels] = max(serving.get(labels, 0), int(serves))
        active[labels] = active.get(labels, 0) + flows
    for family, values in (
        (families.ENDPOINT_SERVING, serving),
        (families.ENDPOINT_ACTIVE, active),
    ):
        yield family.text([f"{{{labels}}} {value}" for labels, value in values.items()])


def _endpoint(record: np.void) -> str:
    return format_endpoint(record["addr"].tobytes(), socket.ntohs(int(record["port"])))


def _labels(text: bytes) -> Labels:
    name = PortName.parse(text.decode(errors="replace"))
    values = {
        "namespace": name.namespace,
        "name": name.service,
        "port": name.port,
        "protocol": name.protocol,
    }
    return Labels(
        ",".join(f'{label}="{_escaped(value)}"' for label, value in values.items()),
        f"{name.namespace}/{name.service}",
        name.family.removeprefix("v"),
    )


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _alone(found: ServiceCounts, rows: Sequence[Labels]) -> dict[tuple[str], int]:
    """Services, not ports, as kube-proxy counts them."""
    return {
        (policy,): len({rows[i].service for i in np.flatnonzero(mask).tolist()})
        for policy, mask in (
            ("internal", found.internal_alone),
            ("external", found.external_alone),
        )
    }


def _by_family(live: counts.Column, rows: Sequence[Labels]) -> dict[tuple[str], int]:
    sums = {("4",): 0, ("6",): 0}
    for row, flows in zip(rows, live.tolist(), strict=True):
        if (row.family,) in sums:
            sums[row.family,] += flows
    return sums


def _summed(values: Numbers, place: npt.NDArray[np.int64], places: Mapping[str, int]) -> Numbers:
    sums = np.zeros(len(places), np.float64)
    np.add.at(sums, place, values)
    return sums


def _busiest(scores: Numbers, most: int) -> npt.NDArray[np.int64]:
    """Places of the highest scores, in the order of the places."""
    if len(scores) <= most:
        return np.arange(len(scores))
    if most <= 0:
        return np.empty(0, np.int64)
    found: npt.NDArray[np.int64] = np.sort(np.argpartition(-scores, most - 1)[:most])
    return found


def _fitted(values: Numbers, room: int) -> Numbers:
    if len(values) >= room:
        return values
    grown = np.zeros(room, np.float64)
    grown[: len(values)] = values
    return grown
