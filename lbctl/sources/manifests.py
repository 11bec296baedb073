"""A source of files, followed while they change.

A file counts as a whole: while it is half-written or invalid, its last good content stays. What is
still open for writing is not read at all where inotify can tell, and elsewhere only once it has
stopped changing.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from pathlib import Path

import msgspec
import structlog

from lbctl.errors import SourceError
from lbctl.model.records import ObjectKey
from lbctl.model.updates import SourceStatus, Update
from lbctl.sources.documents import manifest_files, parse, read_bytes
from lbctl.sources.failures import FailureLog
from lbctl.sources.inotify import CREATE, DirectoryWatch
from lbctl.sources.store import Object, Store, key_of

SETTLE_SECONDS = 0.2  # between the two looks that must agree before a change is believed
SAFETY_SECONDS = 2.0  # between looks for what inotify does not see: links' targets, some networks
_CONFIG_MAP = "..data"  # the link that a mounted ConfigMap swaps
_LEAVES = 2.0

Identity = tuple[int, int, int, int]  # device, inode, size, mtime in ns


class _File(msgspec.Struct):
    """What was read of one file."""

    identity: Identity
    objects: list[Object]
    clean: bool = False  # it was read without an error once
    newline: bool = False  # ... and ended in one
    problem: str = ""  # why its present content is not taken as it is


class ManifestSource:
    """Follows a file, or the files of one directory. A `Source`, see model/updates.py."""

    def __init__(self, path: Path, node_name: str) -> None:
        self._path = path
        self._store = Store(node_name, parts=1)
        self._single = False  # the path is a file
        self._files: dict[Path, _File] = {}
        self._seen: dict[Path, Identity] = {}
        self._watch: DirectoryWatch | None = None
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._log = structlog.get_logger().bind(source=str(path))
        self._failures = FailureLog(source=str(path))

    def start(self) -> None:
        """Read once and begin to follow. Raises SourceError if the path is not there."""
        manifest_files(self._path)
        self._single = not self._path.is_dir()
        self._thread = threading.Thread(target=self._run, name="manifests", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and release the descriptors."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join(_LEAVES)
            if self._thread.is_alive():  # reading a huge file: it is a daemon, leave it its files
                return
        self._unwatch()
        os.close(self._stop)
        self._store.close()

    def fileno(self) -> int:
        """Readable when `wait` would return something."""
        return self._store.fileno()

    def wait(self, timeout: float) -> Update | None:
        """What changed, after at most `timeout` seconds; None if nothing did."""
        return self._store.wait(timeout)

    def status(self) -> SourceStatus:
        """How the source is doing."""
        return self._store.status()

    def _run(self) -> None:
        written: set[str] | None = None  # names known to be complete; None: all of them
        while True:
            settled = self._look(written)
            stopped, written = self._changes(SAFETY_SECONDS if settled else SETTLE_SECONDS)
            if stopped:
                return

    def _changes(self, timeout: float) -> tuple[bool, set[str] | None]:
        """Wait. Whether to stop, and the names that were completely written meanwhile."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if self._watch is not None:
            poll.register(self._watch, select.POLLIN)
        elif timeout == SAFETY_SECONDS:
            timeout = SETTLE_SECONDS
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if self._stop in ready:
            return True, set()
        if self._watch is None or self._watch.fileno() not in ready:
            return False, set()
        names, holds = self._watch.read()
        if not holds:
            self._unwatch()
        if _CONFIG_MAP in names:
            return False, None
        # A file that was only created is about to be written; a link, once created, is complete.
        return False, {
            name for name, bits in names.items() if bits != CREATE or self._is_link(name)
        }

    def _is_link(self, name: str) -> bool:
        try:
            found = (self._directory() / name).lstat()
        except OSError:
            return False
        return stat.S_ISLNK(found.st_mode) or found.st_nlink > 1

    def _directory(self) -> Path:
        return self._path.parent if self._single else self._path

    def _rewatch(self) -> None:
        if self._watch is None:
            try:
                self._watch = DirectoryWatch(self._directory())
            except SourceError as error:
                self._log.debug("no inotify, looking often instead", error=error.message)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _look(self, written: set[str] | None) -> bool:
        """Read what changed. Returns whether nothing has to be looked at again soon."""
        self._rewatch()
        try:
            current = {file: _identity(file) for file in self._present()}
        except (SourceError, OSError) as error:
            message = error.message if isinstance(error, SourceError) else f"{self._path}: {error}"
            self._store.disconnected(self._path, message)
            self._failures.failed(message)
            return True
        self._failures.worked()
        first = not self._store.status().synced
        changed, settled = False, True
        for file, identity in current.items():
            known = self._files.get(file)
            if known is not None and known.identity == identity:
                continue
            if first or written is None or file.name in written or self._seen.get(file) == identity:
                self._read(file, identity)
                changed = True
            else:
                settled = False
        for file in [f for f in self._files if f not in current]:
            if file in self._seen:  # an editor may be about to put it back
                settled = False
            else:
                del self._files[file]
                self._log.info("manifest removed", file=str(file))
                changed = True
        self._seen = current
        self._store.connected(self._path)
        if changed or first:
            self._publish()
        return settled

    def _present(self) -> list[Path]:
        """The files there are now. A single file may go, if its directory stays."""
        gone = not self._path.exists()
        if gone and self._single and self._files and self._path.parent.is_dir():
            return []
        return manifest_files(self._path)

    def _read(self, file: Path, identity: Identity) -> None:
        known = self._files.get(file) or _File(identity, [])
        try:
            data = read_bytes(file)
        except SourceError as error:
            objects, errors = list[Object](), [error.message]
        else:
            objects, errors = self._checked(file, data, known, identity)
            if not errors:
                self._files[file] = _File(identity, objects, True, data.endswith(b"\n"))
                self._log.info("manifest read", file=str(file), objects=len(objects))
                return
        if not known.clean:  # nothing good to keep: take what can be had
            merged = {(type(o), key_of(o)): o for o in (*known.objects, *objects)}
            known = _File(identity, list(merged.values()))
        known.identity = identity
        self._files[file] = known
        known.problem = "; ".join(errors)
        self._log.error(
            "manifest not taken, its last good content stays"
            if known.clean
            else "manifest has errors, the rest of it is used",
            error=known.problem,
        )

    def _checked(
        self, file: Path, data: bytes, known: _File, identity: Identity
    ) -> tuple[list[Object], list[str]]:
        """Objects and errors; a file that was cut short while being rewritten is an error too."""
        if known.clean and known.objects and not data.strip():
            return [], [f"{file}: is empty now; remove the file to remove its objects"]
        objects, errors = parse(file, data)
        rewritten = known.clean and known.identity[:2] == identity[:2]
        cut = (known.newline and not data.endswith(b"\n")) or data.rstrip().endswith(b":")
        if rewritten and cut and not errors:
            # Half of a YAML file may well be valid.
            return [], [f"{file}: seems half-written, it ends in the middle of something"]
        return objects, errors

    def _publish(self) -> None:
        """Hand over all objects of all files. Where two files have one object, the first counts."""
        merged: dict[tuple[type[Object], ObjectKey], Object] = {}
        owner: dict[tuple[type[Object], ObjectKey], Path] = {}
        problems: dict[str, bool] = {}
        for file in sorted(self._files):
            known = self._files[file]
            if known.problem:
                problems[known.problem] = not known.clean
            for value in known.objects:
                identity = (type(value), key_of(value))
                first = owner.setdefault(identity, file)
                if first == file:
                    merged[identity] = value
                else:
                    what = f"{type(value).__name__} {key_of(value)}"
                    problems[f"{file}: {what} is in {first} too, which counts"] = False
        self._store.replace_all(list(merged.values()), problems)


def _identity(file: Path) -> Identity:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
