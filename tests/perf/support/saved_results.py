"""The saved results that the documents are written from."""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

from lbctl.bench.records import Record, Results
from tests.perf.support.scale_result import Result


class Data(msgspec.Struct, frozen=True):
    """The saved results: of `lbctl bench`, and of tests.perf.scale."""

    bench: Results
    agent: list[Result]

    @classmethod
    def read(cls, bench: Path, agent: Path) -> Data:
        lines = agent.read_bytes().splitlines() if agent.exists() else []
        return cls(Results.resume(bench), [msgspec.json.decode(one, type=Result) for one in lines])

    def record(self, peer: str, services: int, measure: str) -> Record | None:
        key = (peer, services, measure)
        return next((record for record in self.bench.records if record.key == key), None)

    def worst_ratio(self, peer: str, measure: str) -> float | None:
        """To the floor, over all numbers of services."""
        found = [
            r.ratio_to_floor for r in self.bench.records if (r.peer, r.measure) == (peer, measure)
        ]
        return max((ratio for ratio in found if ratio is not None), default=None)

    def worst(self, peer: str, measure: str) -> float | None:
        found = [r.p50 for r in self.bench.records if (r.peer, r.measure) == (peer, measure)]
        return max(found, default=None)

    def packet(self, *names: str) -> float | None:
        """The dearest of these kinds, in ns."""
        found = [cost.median for cost in self.bench.about.packets if cost.name in names]
        return max(found, default=None)

    def of_agent(self, services: int, measure: str) -> list[float]:
        """One value per round; none where that was not measured."""
        for result in self.agent:
            if (result.services, result.measure) == (services, measure):
                return result.values
        return []

    def median(self, services: int, measure: str) -> float | None:
        values = self.of_agent(services, measure)
        return statistics.median(values) if values else None
