"""What the agent says of itself, as metrics: read from what its loop has said last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
from prometheus_client.core import Metric

from lbctl.datapath.reasons import verdict
from lbctl.health.answers import Condition
from lbctl.metrics import families
from lbctl.status import StatusRecord
from lbctl.troubles import KINDS


class Snapshot(msgspec.Struct, frozen=True):
    """At one moment. `unattached` are the roles (uplink, pod) of interfaces without programs,
    `reasons` the packets by what was decided about them, `passed` those that passed the stack by,
    `corrections` the times that something others changed was put right, by what it was,
    `events_lost` the events by where they were lost."""

    record: StatusRecord
    condition: Condition
    loaded: bool
    placed: bool
    generations: int
    unattached: tuple[str, ...]
    reasons: dict[str, int]
    passed: int
    corrections: dict[str, int]
    events_lost: dict[str, int]
    listeners: int


def metrics(said: Snapshot) -> Iterator[Metric]:
    """All of it."""
    yield families.READY.metric(int(said.condition.does_all))
    yield families.HEALTHY.metric(int(said.condition.takes_traffic))
    yield from _of_agent(said.record)
    yield from _of_programs(said)
    yield from _of_tables(said.record)
    yield families.EVENTS_LOST.metric({(w,): count for w, count in said.events_lost.items()})
    yield families.LISTENERS.metric(said.listeners)
    yield families.DECISIONS.metric(
        {(verdict(reason), reason): count for reason, count in said.reasons.items()}
    )
    yield families.FAST_OPEN.metric(int(said.record.fast_path.open))
    yield families.PASSED.metric(said.passed)


def _of_agent(record: StatusRecord) -> Iterator[Metric]:
    yield families.BUILD.metric({(record.version,): 1})
    yield families.CONDITION.metric({(kind,): record.conditions.get(kind, 0) for kind in KINDS})
    yield families.SOURCE_CONNECTED.metric({(record.source.kind,): int(record.source.connected)})
    yield families.THREAD_RESTARTS.metric(record.thread_restarts)
    yield families.SOCKETS_CLOSED.metric(record.sockets_closed)
    yield families.TAKING_OVER.metric(int(record.taking_over))
    yield families.SERVICES.metric(record.services)
    yield families.SERVICE_PORTS.metric(record.service_ports)
    yield families.ENDPOINTS.metric(record.endpoints)


def _of_programs(said: Snapshot) -> Iterator[Metric]:
    yield families.PROGRAMS.metric(int(said.loaded))
    yield families.PLACED.metric(int(said.placed))
    yield families.GENERATIONS.metric(said.generations)
    yield families.CORRECTIONS.metric({(what,): count for what, count in said.corrections.items()})
    yield families.ATTACHED.metric(said.record.interfaces)
    missing = Counter(said.unattached)
    yield families.MISSING.metric({(role,): missing[role] for role in ("uplink", "pod")})


def _of_tables(record: StatusRecord) -> Iterator[Metric]:
    tables = record.tables.items()
    most = {(name,): max(use.limit, use.most) for name, use in tables}
    yield families.ENTRIES.metric({(name,): use.entries for name, use in tables})
    yield families.ROOM.metric({(name,): use.limit for name, use in tables})
    yield families.MOST_ENTRIES.metric(most)
    of_flows = [(name, use) for name, use in tables if name.startswith("flows")]
    yield families.EVICTED.metric({(name,): use.evicted for name, use in of_flows})
    yield families.REFUSED.metric({(name,): use.refused for name, use in of_flows})
    yield families.PRESSURE.metric(
        {(name,): use.entries / most[name,] for name, use in tables if most[name,]}
    )
