"""What docs/benchmarks.md and docs/scale.md show of a run: tables, made of its saved results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from lbctl.bench import tables
from lbctl.bench.records import PEERS, WITHOUT_SERVICES, Record
from lbctl.bench.tables import OURS, SAME, number
from tests.perf.support.goals import GOALS
from tests.perf.support.saved_results import Data
from tests.perf.support.scale_result import KERNEL

NOBODY = "nobody"
ABSENT = "–"
NOT_YET = "Not measured with this version yet: `./dev figures --only agent`.\n"
# Measures of the first table, in its order, and how they are called there.
_COMPARED = {
    "connect_latency": "connect(), µs",
    "connection_rate": "connections, 1/s",
    "roundtrip_added": "added to a round trip, µs",
    "roundtrip_64k": "the same with 65,536 connections, µs",
    "cpu_per_packet": "CPU, s per 1M packets",
    "request_rate": "HTTP requests, 1/s",
    "throughput": "one bulk connection, Gbit/s",
    "packet_rate": "forwarded by a node, packets per second",
    "load_time": "from nothing to all programmed, s",
    "change_time": "a changed endpoint is reached, ms",
    "kernel_memory": "kernel memory, MB",
    "agent_memory": "the agent's memory, MB",
}


def wins(data: Data) -> str:
    """Everybody beside each other, by measure and number of services."""
    peers = [
        p for p in PEERS if any(r.peer == p and r.measure in _COMPARED for r in data.bench.records)
    ]
    rows = []
    for measure, name in _COMPARED.items():
        sizes = sorted({r.services for r in data.bench.records if r.measure == measure})
        for size in sizes:
            found = {p: r for p in peers if (r := data.record(p, size, measure)) is not None}
            if len(found.keys() - WITHOUT_SERVICES) > 1:
                cells = (_compared(found.get(peer)) for peer in peers)
                rows.append((name, f"{size:,}", *cells, _winner(measure, found)))
                name = ""
    return table(("measure", "services", *peers, "wins"), rows, left=("measure", "wins"))


def _compared(record: Record | None) -> str:
    if record is None:
        return ABSENT
    ratio = record.ratio_to_floor
    return number(record.p50) + (f" ×{ratio:.2f}" if ratio is not None else "")


def _winner(measure: str, found: dict[str, Record]) -> str:
    """Whoever nobody is clearly better than, if there is a competition."""
    others = {p: record for p, record in found.items() if p not in WITHOUT_SERVICES}
    if all(peer.startswith(OURS) for peer in others):
        return ABSENT
    best = [
        peer
        for peer, record in others.items()
        if not any(tables.worse(measure, record, other) for other in others.values())
    ]
    ours = [peer for peer in best if peer.startswith(OURS)]
    if len(ours) == len([peer for peer in others if peer.startswith(OURS)]) and ours == best:
        return "**lbctl**"
    if ours and len(best) > len(ours):
        return NOBODY
    return ", ".join(f"**{peer}**" for peer in best) or NOBODY


def losses(data: Data) -> str:
    """Sentences, one for each peer and measure that we lose in."""
    return "".join(
        f"- {s}\n" for s in [*data.bench.about.failures, *tables.verdicts(data.bench.records)]
    )


def packets(data: Data) -> str:
    costs = data.bench.about.packets
    rows = [(cost.name, f"{cost.minimum:.0f}", f"{cost.median:.0f}") for cost in costs]
    return table(("packet", "minimum", "median"), rows)


def machine(data: Data) -> str:
    known = data.bench.about.machine.items()
    return "".join(f"- {name}: {value}\n" for name, value in known)


def goals(data: Data) -> str:
    """Each beside what was reached; what is missed is said so."""
    rows = []
    for goal in GOALS:
        value = goal.value(data)
        met = ABSENT if value is None else "yes" if value <= goal.most else "**no**"
        reached = ABSENT if value is None else f"{number(value)} {goal.unit}"
        rows.append((goal.text, f"≤ {number(goal.most)} {goal.unit}", reached, met))
    return table(("goal", "at most", "reached", "met"), rows, left=("goal", "met"))


def agent(data: Data) -> str:
    """What the load test found, by number of services: median, lowest and highest."""
    if not data.agent:
        return NOT_YET
    sizes = _sizes(data)
    rows = []
    for measure in dict.fromkeys(result.measure for result in data.agent):
        if measure.startswith(KERNEL):
            continue
        unit = next(result.unit for result in data.agent if result.measure == measure)
        cells = (spread(data.of_agent(size, measure)) for size in sizes)
        rows.append((f"{measure}, {unit}" if unit else measure, *cells))
    return table(("measure", *map(_services, sizes)), rows)


def kernel(data: Data) -> str:
    """What maps take, the largest first; what is small together."""
    if not data.agent:
        return NOT_YET
    sizes = _sizes(data)
    names = [r.measure for r in data.agent if r.measure.startswith(KERNEL)]
    by_size = {
        name: [data.median(size, name) or 0.0 for size in sizes] for name in dict.fromkeys(names)
    }
    large = {name: values for name, values in by_size.items() if max(values) >= 1}
    order = sorted(large, key=lambda name: -max(large[name]))
    rows = [(name.removeprefix(KERNEL), *(f"{v:.1f}" for v in large[name])) for name in order]
    small = [sum(v[at] for n, v in by_size.items() if n not in large) for at in range(len(sizes))]
    rows.append((f"{len(by_size) - len(large)} others", *(f"{value:.1f}" for value in small)))
    rows.append(
        ("all", *(f"**{sum(v[at] for v in by_size.values()):.1f}**" for at in range(len(sizes))))
    )
    return table(("map", *map(_services, sizes)), rows)


def _services(count: int) -> str:
    return f"{count:,} services" if count > 1 else "1 service"


def _sizes(data: Data) -> list[int]:
    return sorted({result.services for result in data.agent})


def spread(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    middle, low, high = statistics.median(values), min(values), max(values)
    if high - low <= SAME * abs(middle):
        return number(middle)
    return f"{number(middle)} ({number(low)}–{number(high)})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ()) -> str:
    """In Markdown, numbers to the right; the first column is text."""
    rule = "".join("---|" if name in (head[0], *left) else "---:|" for name in head)
    lines = [head, *rows]
    made = ["| " + " | ".join(line) + " |\n" for line in lines]
    return "".join([made[0], f"|{rule}\n", *made[1:]])


TABLES: dict[str, Callable[[Data], str]] = {
    "wins": wins,
    "losses": losses,
    "goals": goals,
    "packets": packets,
    "machine": machine,
    "agent": agent,
    "kernel": kernel,
}
