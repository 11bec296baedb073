"""What metrics are made of, read from the agent's parts by the thread that serves them.

Only what the loop replaces as a whole is read, so that no lock is needed and nothing waits.
"""

from __future__ import annotations

from collections.abc import Callable

from lbctl.agent.parts import Parts
from lbctl.agent.report import Report
from lbctl.config.settings import Settings
from lbctl.datapath.tables import Records
from lbctl.inspect import instance
from lbctl.instruments import Instruments
from lbctl.metrics.pages import Pages
from lbctl.metrics.services import Bounds, ServiceSeries
from lbctl.metrics.snapshot import Snapshot


def pages(
    parts: Parts, report: Report, instruments: Instruments, settings: Callable[[], Settings]
) -> Pages:
    """The pages of this agent."""

    def bounds() -> Bounds:
        said = settings()
        return Bounds(said.metrics_services, frozenset(said.metrics_endpoints_of))

    def carried() -> Records | None:
        return parts.reconciler.housekeeper.carried

    series = ServiceSeries(parts.instance, bounds, carried)
    return Pages(instruments, series, lambda: _look(parts, report), settings)


def _look(parts: Parts, report: Report) -> Snapshot:
    generations = parts.instance.pin_dir / "programs"
    return Snapshot(
        record=report.latest,
        condition=parts.health.condition(),
        loaded=parts.programs.loaded,
        placed=parts.programs.placed,
        generations=sum(1 for _ in generations.iterdir()),
        unattached=tuple(
            "uplink" if item.uplink else "pod" for item in parts.interfaces.unattached
        ),
        reasons=instance.reasons(parts.instance),
        passed=instance.passed(parts.instance),
        corrections={"interface": parts.interfaces.repairs},
        events_lost={"ring": parts.hub.unheard, "listener": parts.hub.dropped},
        listeners=parts.hub.listeners,
    )
