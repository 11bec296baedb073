"""Writing the status files in a thread of its own: replacing a file waits for a busy disk, where
/run is on one, and a change must not."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from lbctl import status
from lbctl.status import StatusRecord


class StatusWriter:
    """Takes what is to be written; `close` once, which waits for the last of it."""

    def __init__(self, pin_dir: Path) -> None:
        self._pin_dir = pin_dir
        self._pool = ThreadPoolExecutor(1, "status")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether the disk still has not taken the last one."""
        return self._last is not None and not self._last.done()

    def write(self, record: StatusRecord, hints: dict[str, str] | None) -> None:
        """Replace the file, and that of hints if there are any; a failure is logged."""
        self._last = self._pool.submit(self._write, record, hints)

    def close(self) -> None:
        """Everything given is written afterwards."""
        self._pool.shutdown()

    def _write(self, record: StatusRecord, hints: dict[str, str] | None) -> None:
        try:
            if hints is not None:
                status.write_hints(self._pin_dir, status.HintsRecord(record.pid, hints))
            status.write(record)
        except OSError as error:
            log = structlog.get_logger()
            log.warning("cannot write the status file", error=str(error))
