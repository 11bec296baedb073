"""What the demo found out, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

from lbctl.lab.traffic.report import Report
from lbctl.printing import print_rich


@dataclass
class Phase:
    """One thing that was done, and what became of the traffic meanwhile."""

    title: str
    reports: list[tuple[str, Report]] = field(default_factory=list)  # with what was asked
    failures: list[str] = field(default_factory=list)  # what should not have been

    def add(self, what: str, report: Report) -> None:
        self.reports.append((what, report))

    @property
    def sent(self) -> int:
        return sum(report.sent for _, report in self.reports)

    @property
    def lost(self) -> int:
        return sum(report.lost for _, report in self.reports)

    @property
    def slowest_ms(self) -> float:
        return max((report.max_ms for _, report in self.reports), default=0.0)


@dataclass
class Outcome:
    """All of the demo."""

    phases: list[Phase] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(phase.sent for phase in self.phases)

    @property
    def lost(self) -> int:
        return sum(phase.lost for phase in self.phases)

    @property
    def failures(self) -> list[str]:
        """Everything that should not have been, lost requests with their reasons included."""
        return [text for phase in self.phases for text in (*phase.failures, *_losses(phase))]

    @property
    def good(self) -> bool:
        return not self.failures and self.lost == 0 and self.sent > 0


def _losses(phase: Phase) -> list[str]:
    return [
        f"{phase.title}: {what}: {report.lost} of {report.sent} lost "
        f"({', '.join(f'{kind} {count}' for kind, count in sorted(report.failures.items()))})"
        + (f", first at {report.notes[0]}" if report.notes else "")
        for what, report in phase.reports
        if report.lost
    ]


def show_spread(phase: Phase) -> None:
    """Who answered how many requests, per service address."""
    servers = sorted({name for _, report in phase.reports for name in report.servers})
    print("\nWho answered the requests to each address:\n")
    table = _table("service", "address")
    for title in ("requests", *servers, "lost"):
        table.add_column(title, justify="right")
    for what, report in phase.reports:
        answers = [str(report.servers.get(name, "–")) for name in servers]
        table.add_row(what, report.target, str(report.sent), *answers, str(report.lost))
    print_rich(table)
    print(flush=True)


def show_summary(outcome: Outcome) -> None:
    """The end of the demo: each phase in a line, then what was lost in all."""
    print("\nWhat happened while requests were being made:\n")
    table = _table("meanwhile")
    for title in ("requests", "lost", "slowest"):
        table.add_column(title, justify="right")
    for phase in outcome.phases:
        slowest = f"{phase.slowest_ms:.0f} ms" if phase.sent else "–"
        table.add_row(phase.title, str(phase.sent), str(phase.lost), slowest)
    print_rich(table)
    print()
    for text in outcome.failures:
        print(f"failed: {text}")
    if outcome.good:
        print("Every request was answered, after each change only by the pods that then served.")
    print(f"requests: {outcome.sent}")
    print(f"lost: {outcome.lost}")


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title)
    return table
