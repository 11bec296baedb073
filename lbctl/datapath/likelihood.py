"""How likely each endpoint is to get the next new flow, by the records as they are: the arithmetic
of bpf_src/algorithm.h, for people to read."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lbctl.datapath import consts
from lbctl.datapath.regions import region_of, table_places
from lbctl.datapath.shares import Shape, likelihood
from lbctl.datapath.tables import ArrayTable

Odds = npt.NDArray[np.float64]
Kind = Literal["cluster", "local"]

# All pairs are looked at; of more endpoints than that, only the weights.
_MOST_COMPARED = 1024


class ChoiceTables(Protocol):
    """The maps this module reads."""

    @property
    def services(self) -> ArrayTable: ...
    @property
    def slots(self) -> ArrayTable: ...
    @property
    def backends(self) -> ArrayTable: ...
    @property
    def backend_live(self) -> ArrayTable: ...
    @property
    def hash_tables(self) -> ArrayTable: ...


class _Part(NamedTuple):
    """Slots that are drawn from: their endpoints, shapes, flows that these have, weights."""

    ids: npt.NDArray[np.uint32]
    shape: Shape
    flows: Odds
    weights: Odds

    def load(self, more: int) -> Odds:
        """How busy each is for its weight, with `more` flows."""
        return (self.flows + more) / self.weights

    def between(self, first: int, end: int) -> _Part:
        shares = self.shape.shares[first:end]
        others = np.where(shares > 0, self.shape.others[first:end].astype(np.int64) - first, 0)
        shape = Shape(shares, others.astype(np.uint16))
        return _Part(self.ids[first:end], shape, self.flows[first:end], self.weights[first:end])


def odds(tables: ChoiceTables, service: int, kind: Kind) -> dict[int, float]:
    """By backend id, of one of the service's sets; empty if nothing new is taken there. By hash, it
    is over all clients."""
    record = tables.services.records[service]
    base, length = region_of(int(record[kind]))
    if not length or int(record[kind]) & consts.REGION_CLOSED:
        return {}
    slots = tables.slots.records[base : base + length]
    ids = slots["backend"].copy()
    if record["algorithm"] >= consts.ALGORITHM_MAGLEV:
        found = _of_table(tables, int(record[f"{kind}_table"]), ids)
        if found is not None:
            return dict(zip(ids.tolist(), found.tolist(), strict=True))
    weights = np.maximum(tables.backends.records["weight"][ids], 1).astype(np.float64)
    flows = tables.backend_live.records[ids].astype(np.float64)
    part = _Part(ids, Shape(slots["share"].copy(), slots["other"].copy()), flows, weights)
    least = record["algorithm"] == consts.ALGORITHM_LEAST_CONNECTIONS
    near = int(record["near"]) if kind == "cluster" else 0
    if not 0 < near < length:
        chances = _picked(part, least)
    else:
        times = int(record["spill_over"]) / consts.SPILL_UNIT
        chances = _near_first(part.between(0, near), part.between(near, length), least, times)
    return dict(zip(ids.tolist(), chances.tolist(), strict=True))


def _of_table(tables: ChoiceTables, word: int, ids: npt.NDArray[np.uint32]) -> Odds | None:
    base, length = region_of(word)
    if not length:
        return None
    places = table_places(tables.hash_tables.records)[base : base + length]
    order = np.argsort(ids)
    at = np.searchsorted(ids[order], places).clip(0, len(ids) - 1)
    chances: Odds = np.bincount(order[at], minlength=len(ids)) / length
    return chances


def _picked(part: _Part, least: bool) -> Odds:
    """By slot: by its weight; or the less busy of two slots that are not the same."""
    count = len(part.ids)
    plain = likelihood(part.shape)
    if not least or count < 2 or count > _MOST_COMPARED:
        return plain
    away = np.where(part.shape.shares > 0, (part.shape.shares + 1.0) / (1 << 16), 0.0)
    stands = np.diag(1 - away)  # by slot and endpoint
    np.add.at(stands, (np.arange(count), part.shape.others), away)
    both = np.outer(plain * count, plain * count) - stands.T @ stands
    both /= count * (count - 1)
    load = part.load(0)
    second = load[:, None] > load[None, :]  # it is less busy than the first
    chances: Odds = np.where(second, 0, both).sum(axis=1) + np.where(second, both, 0).sum(axis=0)
    return chances


def _near_first(near: _Part, rest: _Part, least: bool, times: float) -> Odds:
    first, other = _picked(near, least), likelihood(rest.shape)
    if len(near.ids) * len(rest.ids) > _MOST_COMPARED**2:
        return np.concatenate([first, np.zeros(len(other))])
    spilt = near.load(1)[:, None] > times * rest.load(1)[None, :]
    both = np.outer(first, other)
    return np.concatenate(
        [np.where(spilt, 0, both).sum(axis=1), np.where(spilt, both, 0).sum(axis=0)]
    )
