"""What the agent says of itself: the status record as it now is, and the file it is written to."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from ebpf.errors import Untrusted
from lbctl import status
from lbctl.agent.conditions import Conditions
from lbctl.agent.parts import Parts
from lbctl.errands import Errand
from lbctl.status import SourceState, StatusRecord
from lbctl.troubles import Said, bounded, of_kind

# The status file is written at most this often while much changes.
STATUS_SECONDS = 1.0
_LEAVES = 5.0  # whoever ends waits so long for the disk
WRITING_SECONDS = 30.0  # a disk that takes longer hangs


class Report:
    """Collects from all parts, and writes what differs."""

    def __init__(self, parts: Parts, record: StatusRecord, writer: "StatusWriter") -> None:
        """`record` says what never changes."""
        self._parts = parts
        self._record = record
        self._writer = writer
        self._conditions = Conditions(parts)
        self.events_problem: Callable[[], str] = str
        self.cache_problem = ""  # of compiled programs
        self.latest = record  # for other threads, which read it whenever they like
        self.said: tuple[Said, ...] = ()  # what is wrong by `latest`
        self._ready = False
        self._written: StatusRecord | None = None
        self._written_at = 0.0

    def applied(self, seconds: float) -> None:
        """Something was written to the maps, in this time."""
        self._record = msgspec.structs.replace(
            self._record,
            last_apply=datetime.now(UTC).isoformat(timespec="milliseconds"),
            last_apply_seconds=round(seconds, 6),
        )

    def ready(self) -> None:
        """The first sync is done, and the programs are in place; said at once."""
        self._ready = True
        self._written_at = 0.0  # if the file is being written at this moment: as soon as it is
        self.write(time.monotonic())

    def stopped(self) -> None:
        """The last word."""
        self._ready = False
        self._writer.close()
        self.write(time.monotonic())

    def due(self) -> float | None:
        """When `step` has something to do, or may have, on the monotonic clock."""
        now, earliest = time.monotonic(), self._written_at + STATUS_SECONDS
        if now < earliest:
            return earliest  # whether there is anything is seen then
        changed = self.record() != self._written or self._parts.reconciler.hints_changed
        if self._writer.busy:
            return now + STATUS_SECONDS
        if changed:
            return earliest
        # Who reads it takes one that is old for that of an agent that hangs.
        again = self._written_at + status.BEAT_SECONDS
        expected = self._conditions.due()
        return again if expected is None else min(again, max(expected, now))

    def step(self, now: float) -> None:
        """Write the file."""
        self.write(now)

    def write(self, now: float) -> None:
        """Write the file, if anything differs from what it says or it has become old."""
        record = self.record()
        if self._writer.busy:
            return
        hints = self._parts.reconciler.take_hints()
        fresh = now < self._written_at + status.BEAT_SECONDS
        if record == self._written and hints is None and fresh:
            return
        self._written_at = now
        self._written = record
        troubles = {} if hints is None else self._parts.reconciler.troubles()
        self._writer.write(record, hints, troubles)

    def record(self) -> StatusRecord:
        """As of now."""
        parts, reconciler, source = self._parts, self._parts.reconciler, self._parts.source.status()
        self._conditions.look()
        said = tuple(self._warnings())
        self.said = said
        self.latest = msgspec.structs.replace(
            self._record,
            ready=self._ready and self._conditions.settled,
            synced=source.synced,
            services=reconciler.services,
            service_ports=len(reconciler.planner.services),
            endpoints=reconciler.planner.backend_ids.in_use,
            interfaces=parts.interfaces.attached,
            taking_over=parts.takeover.present,
            socket_lb=parts.sockets.mode,
            xdp=parts.interfaces.xdp,
            drivers=parts.interfaces.drivers,
            xdp_others=parts.fast_path.minding,
            sockets_closed=parts.stale.closed,
            thread_restarts=parts.keeper.restarts + source.restarts,
            corrections=reconciler.housekeeper.corrections,
            source=SourceState(
                self._record.source.kind,
                source.connected,
                source.complete,
                source.last_error,
                tuple(bounded(source.problems)),
            ),
            tables=reconciler.housekeeper.tables(),
            warnings=tuple(one.text for one in said),
            conditions=dict(
                Counter([*(one.kind for one in said), *("objects" for _ in source.problems)])
            ),
            audit=reconciler.audit.corrections.said(),
            fast_path=parts.fast_path.state,
        )
        return self.latest

    def _warnings(self) -> Iterator[Said]:
        """A line for each object, and not without end of any kind."""
        parts = self._parts
        yield from self._conditions.bounded()
        yield from of_kind(
            "removed",
            (
                f"programs on {name} had been taken away and were put back: something on this "
                "node removes them"
                for name in parts.interfaces.repaired
            ),
        )
        yield from parts.reconciler.said()
        for kind, texts in (
            ("room", parts.reconciler.housekeeper.warnings()),
            ("growth", filter(None, [parts.growth.problem])),
            ("sockets", parts.sockets.warnings(parts.facts.current.localhost_node_ports)),
            ("xdp", parts.interfaces.xdp_problems),
            ("reserved-ports", filter(None, [parts.routine.problem])),
            ("listeners", filter(None, [parts.hub.problem])),
            ("stale-sockets", filter(None, [parts.stale.problem])),
            ("listening", parts.health.problems()),
            ("settings", parts.config.problems() if parts.config else ()),
            ("sweep", filter(None, [parts.reconciler.housekeeper.problem])),
            ("attachments", filter(None, [parts.interfaces.problem])),
            ("cache", filter(None, [self.cache_problem])),
            ("status", filter(None, [self._writer.problem])),
            ("events", filter(None, [self.events_problem()])),
        ):
            yield from of_kind(kind, texts)


class StatusWriter:
    """Writes in a thread of its own: replacing a file waits for a busy disk, where /run is on one,
    and a change must not. `close` once, which waits for the last of it."""

    def __init__(self, pin_dir: Path, errand: Errand) -> None:
        """`errand` is who writes, in WRITING_SECONDS at most."""
        self._pin_dir = pin_dir
        self._errand = errand
        self.problem = ""  # which the file itself cannot say

    @property
    def busy(self) -> bool:
        """Whether the disk still has not taken the last one."""
        return self._errand.busy

    def write(
        self,
        record: StatusRecord,
        hints: dict[str, str] | None,
        troubles: dict[str, tuple[str, ...]],
    ) -> bool:
        """Replace the file, and that of hints and troubles if there are news of either; False if it
        is `busy`. A failure is logged."""
        second = None if hints is None else status.HintsRecord(record.pid, dict(hints), troubles)
        return self._errand.send(lambda: self._write(record, second))

    def close(self) -> None:
        """What was given is written, unless the disk hangs."""
        self._errand.join(_LEAVES)

    def _write(self, record: StatusRecord, second: status.HintsRecord | None) -> None:
        try:
            if second is not None:
                status.write_hints(self._pin_dir, second)
            status.write(record)
        except (OSError, Untrusted) as error:
            log = structlog.get_logger()
            log.warning("cannot write the status file", error=str(error))
            self.problem = f"the status file cannot be written: {error}"
        else:
            self.problem = ""
