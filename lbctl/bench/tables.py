"""Tables of a run's results, and the sentences that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from lbctl.bench.records import (
    ADDED,
    ALL,
    MANY_FLOWS,
    ORDER,
    PEERS,
    RATES,
    UNITS,
    WITHOUT_SERVICES,
    About,
    Missing,
    Record,
)

MEANING = {
    "connect_latency": "Time of connect()",
    "connection_rate": "Whole connections, one after another",
    "request_rate": "HTTP requests on kept-alive connections (wrk)",
    "throughput": "One bulk connection (iperf3)",
    "roundtrip_added": "Added to a round trip of one byte",
    "roundtrip_64k": f"Added to a round trip, each on another of {MANY_FLOWS:,} open connections",
    "cpu_per_packet": "CPU time per packet, both ends and the node",
    "packet_ns": "A packet of an established IPv4 TCP connection, above an empty program",
    "packet_instructions": "Static instructions of the programs such packets run through",
    "packet_rate": "Packets that one CPU forwards for a service, to another node and back",
    "load_time": "From nothing to all services programmed",
    "change_time": "From a changed endpoint to the first connection that reaches the new one",
    "agent_memory": "Resident memory of the agent",
    "kernel_memory": "Kernel memory of rules or maps",
}
OURS = "lbctl-"
NOT_MEASURED = "Not measured"
# Differences below this are not told apart from noise.
SAME = 0.03


class Table(msgspec.Struct, frozen=True):
    """A table: the first column is text, the others are numbers with what belongs to them."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def of_measures(records: Sequence[Record], about: About) -> list[Table]:
    """One table per measure: peers down, numbers of services across."""
    return [
        table for measure in MEANING if (table := _of_measure(measure, records, about)) is not None
    ]


def _of_measure(measure: str, records: Sequence[Record], about: About) -> Table | None:
    found = {(r.peer, r.services): r for r in records if r.measure == measure}
    if not found:
        return None
    sizes = sorted({services for _, services in found})
    absent = {
        (missing.peer, missing.services)
        for missing in about.missing
        if missing.measure in (measure, ALL)
    }
    rows = []
    for peer in ORDER:
        if not any((peer, size) in found for size in sizes):
            continue
        cells = [
            cell(found[peer, size])
            if (peer, size) in found
            else "not measured"
            if (peer, size) in absent
            else "–"
            for size in sizes
        ]
        rows.append((peer, *cells))
    spread = "p50, × the floor, (p90, p99)"
    return Table(
        f"{measure}: {MEANING[measure]}, {UNITS[measure]} – {spread}",
        ("peer", *(f"{size:,} services" if size else "here" for size in sizes)),
        tuple(rows),
    )


def cell(record: Record) -> str:
    """Median, ratio to the floor, and spread of one record."""
    text = number(record.p50)
    if record.ratio_to_floor is not None:
        text += f" ×{record.ratio_to_floor:.2f}"
    if record.n > 1:
        text += f" ({number(record.p90)}, {number(record.p99)})"
    return text


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def of_packets(about: About) -> list[Table]:
    """All kinds of packet through our programs, and the programs' sizes."""
    tables = []
    if about.packets:
        tables.append(
            Table(
                "A packet through our programs, in ns above an empty program",
                ("packet", "minimum", "median"),
                tuple((c.name, f"{c.minimum:.0f}", f"{c.median:.0f}") for c in about.packets),
            )
        )
    if about.instructions:
        tables.append(
            Table(
                "Instructions of our programs",
                ("program", "static", "verified"),
                tuple((n, f"{s:,}", f"{v:,}") for n, (s, v) in sorted(about.instructions.items())),
            )
        )
    return tables


def of_missing(about: About) -> Table | None:
    """What was not measured, with the reason; what is missing for one reason shares a row."""
    reasons: dict[str, list[Missing]] = {}
    for found in about.missing:
        reasons.setdefault(found.reason, []).append(found)
    if not reasons:
        return None
    rows = tuple(
        (
            _listed(one.peer for one in found),
            _listed("everything" if one.measure == ALL else one.measure for one in found),
            _listed(f"{one.services:,}" if one.services else "any" for one in found),
            reason,
        )
        for reason, found in reasons.items()
    )
    return Table(NOT_MEASURED, ("peers", "measures", "services", "reason"), rows)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def verdicts(records: Sequence[Record]) -> list[str]:
    """Where we lose against a peer that does the same work (one without services does not), in
    sentences.

    Differences of up to SAME count as none.
    """
    sentences = []
    for measure in MEANING:
        for ours in (peer for peer in PEERS if peer.startswith(OURS)):
            for other in (p for p in PEERS if not (p in WITHOUT_SERVICES or p.startswith(OURS))):
                if sentence := _loss(measure, ours, other, records):
                    sentences.append(sentence)
    compared = {record.peer for record in records} - WITHOUT_SERVICES
    kinds = {peer.startswith(OURS) for peer in compared}
    if len(kinds) < 2:
        return ["lbctl and another peer were not both measured: there is nothing to compare."]
    if not sentences:
        sentences.append(
            f"lbctl loses to no rules in anything measured (differences up to {SAME:.0%} count "
            "as none)."
        )
    return sentences


def _loss(measure: str, ours: str, other: str, records: Sequence[Record]) -> str:
    mine = {r.services: r for r in records if (r.peer, r.measure) == (ours, measure)}
    theirs = {r.services: r for r in records if (r.peer, r.measure) == (other, measure)}
    lost = []
    for services in sorted(mine.keys() & theirs.keys()):
        a, b = mine[services], theirs[services]
        if worse(measure, a, b):
            lost.append(f"{cell(a)} against {cell(b)} at {services:,}")
    if not lost:
        return ""
    return f"{ours} loses to {other} in {measure} ({UNITS[measure]}): {'; '.join(lost)} services."


def worse(measure: str, mine: Record, other: Record) -> bool:
    """By the ratio to the floor where there is one: it leaves out what disturbed both."""
    a, b = mine.p50, other.p50
    if measure not in ADDED and mine.ratio_to_floor and other.ratio_to_floor:
        a, b = mine.ratio_to_floor, other.ratio_to_floor
    if measure in ADDED:  # differences, which may be negative
        return a - b > SAME * max(abs(a), abs(b))
    return a < b * (1 - SAME) if measure in RATES else a > b * (1 + SAME)


def markdown(table: Table) -> str:
    lines = [
        f"**{table.title}**",
        "",
        "| " + " | ".join(table.head) + " |",
        "|---|" + "---:|" * (len(table.head) - 1),
        *("| " + " | ".join(row) + " |" for row in table.rows),
    ]
    return "\n".join(lines) + "\n"
