"""What the agent says of itself: the status record as it now is, and the file it is written to."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from ebpf.errors import Untrusted
from lbctl import status
from lbctl.agent.parts import Parts
from lbctl.status import SourceState, StatusRecord

# The status file is written at most this often while much changes.
STATUS_SECONDS = 1.0


class Report:
    """Collects from all parts, and writes what differs."""

    def __init__(self, parts: Parts, record: StatusRecord, writer: "StatusWriter") -> None:
        """`record` says what never changes."""
        self._parts = parts
        self._record = record
        self._writer = writer
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
        """The first sync is done; said at once."""
        self._ready = True
        self.write(time.monotonic())

    def stopped(self) -> None:
        """The last word."""
        self._ready = False
        self.write(time.monotonic())

    def due(self) -> float | None:
        """When `step` has something to do, or may have, on the monotonic clock."""
        now, earliest = time.monotonic(), self._written_at + STATUS_SECONDS
        if now < earliest:
            return earliest  # whether there is anything is seen then
        if self._writer.busy:
            return now + STATUS_SECONDS
        changed = self._parts.reconciler.hints_changed or self.record() != self._written
        return earliest if changed else None

    def step(self, now: float) -> None:
        """Write the file."""
        self.write(now)

    def write(self, now: float) -> None:
        """Write the file, if anything differs from what it says."""
        record = self.record()
        hints = self._parts.reconciler.take_hints()
        if record == self._written and hints is None:
            return
        self._written_at = now
        self._written = record
        troubles = {} if hints is None else self._parts.reconciler.troubles()
        self._writer.write(record, hints, troubles)

    def record(self) -> StatusRecord:
        """As of now."""
        parts, reconciler, source = self._parts, self._parts.reconciler, self._parts.source.status()
        problems = [*parts.interfaces.problems, *parts.sockets.problems]
        warnings = [
            *problems,
            *reconciler.warnings(),
            *reconciler.housekeeper.warnings(),
            *parts.sockets.warnings(parts.facts.current.localhost_node_ports),
            *filter(None, [parts.routine.problem, parts.stale.problem]),
            *parts.health.problems(),
            *(parts.config.problems() if parts.config else ()),
        ]
        return msgspec.structs.replace(
            self._record,
            ready=self._ready and not problems,
            synced=source.synced,
            services=reconciler.services,
            service_ports=len(reconciler.planner.services),
            endpoints=reconciler.planner.backend_ids.in_use,
            interfaces=parts.interfaces.attached,
            taking_over=parts.takeover.present,
            socket_lb=parts.sockets.mode,
            sockets_closed=parts.stale.closed,
            source=SourceState(
                self._record.source.kind,
                source.connected,
                source.complete,
                source.last_error,
                source.problems,
            ),
            tables=reconciler.housekeeper.tables(),
            warnings=tuple(warnings),
        )


class StatusWriter:
    """Writes in a thread of its own: replacing a file waits for a busy disk, where /run is on one,
    and a change must not. `close` once, which waits for the last of it."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._pool = ThreadPoolExecutor(1, "status")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the disk still has not taken the last one."""
        return self._last is not None and not self._last.done()

    def write(
        self,
        record: StatusRecord,
        hints: dict[str, str] | None,
        troubles: dict[str, tuple[str, ...]],
    ) -> None:
        """Replace the file, and that of hints and troubles if there are news of either; a failure
        is logged."""
        second = None if hints is None else status.HintsRecord(record.pid, dict(hints), troubles)
        self._last = self._pool.submit(self._write, record, second)

    def close(self) -> None:
        """Everything given is written afterwards."""
        self._pool.shutdown()

    def _write(self, record: StatusRecord, second: status.HintsRecord | None) -> None:
        try:
            if second is not None:
                status.write_hints(self._pin_dir, second)
            status.write(record)
        except (OSError, Untrusted) as error:
            log = structlog.get_logger()
            log.warning("cannot write the status file", error=str(error))
