"""A source of files, followed while they change.

What can be read of a file is taken; an object that cannot stays as it was known. While a file is
half-written, or something in it could be any object, nothing of it is removed. What is still open
for writing is not read at all where inotify can tell, and elsewhere only once it has stopped
changing.
"""

from __future__ import annotations

import os
import select
import stat
from pathlib import Path

import msgspec
import structlog

from lbctl.errors import SourceError
from lbctl.model.records import ObjectKey
from lbctl.model.updates import SourceStatus, Update
from lbctl.sources import documents
from lbctl.sources.documents import Parsed, manifest_files, parse, read_bytes
from lbctl.sources.failures import FailureLog
from lbctl.sources.inotify import CREATE, DirectoryWatch
from lbctl.sources.store import Object, Store, key_of
from lbctl.threads import Beat, Watched

SETTLE_SECONDS = 0.2  # between the two looks that must agree before a change is believed
SAFETY_SECONDS = 2.0  # between looks for what inotify does not see: links' targets, some networks
_CONFIG_MAP = "..data"  # the link that a mounted ConfigMap swaps
_LEAVES = 2.0
_READING_SECONDS = 120.0  # until the thread counts as stuck, on a slow disk
_BYTES_A_SECOND = 200_000  # that are parsed at least

Identity = tuple[int, int, int, int]  # device, inode, size, mtime in ns


class _File(msgspec.Struct):
    """What was read of one file. `problems`: sentences, with whether they are about something that
    was never read."""

    identity: Identity
    objects: dict[documents.Identity, Object]
    clean: bool = False  # it was read without an error once
    newline: bool = False  # ... and ended in one
    problems: dict[str, bool] = {}


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
        self._thread = Watched("manifests", self._run, wake=self._store.wake)
        self._log = structlog.get_logger().bind(source=str(path))
        self._failures = FailureLog(source=str(path))

    def start(self) -> None:
        """Read once and begin to follow. Raises SourceError if the path is not there."""
        manifest_files(self._path)
        self._single = not self._path.is_dir()
        self._thread.start()

    def expect(self, services: int) -> None:
        """Files are what they are."""

    def stop(self) -> None:
        """End the thread and release the descriptors."""
        os.eventfd_write(self._stop, 1)
        self._thread.stop()
        if not self._thread.join(
            _LEAVES
        ):  # reading a huge file: it is a daemon, leave it its files
            return
        self._unwatch()
        os.close(self._stop)
        self._store.close()

    def fileno(self) -> int:
        """Readable when `wait` would return something."""
        return self._store.fileno()

    def wait(self, timeout: float) -> Update | None:
        """What changed, after at most `timeout` seconds; None if nothing did."""
        update = self._store.wait(timeout)
        self._thread.check()
        if update is None:
            return None
        return msgspec.structs.replace(update, status=self._with_thread(update.status))

    def status(self) -> SourceStatus:
        """How the source is doing."""
        self._thread.check()
        return self._with_thread(self._store.status())

    def service_problems(self) -> dict[ObjectKey, str]:
        """None: nobody looks for them at an API."""
        return {}

    def due(self) -> float | None:
        """When `status` has to be asked for at the latest, for the sake of the thread."""
        return self._thread.due()

    def read_again(self) -> None:
        """Read every file anew."""
        self._thread.begin_again()

    def api_places(self) -> frozenset[tuple[bytes, int]]:
        """None: there is no API server."""
        return frozenset()

    def _with_thread(self, status: SourceStatus) -> SourceStatus:
        if not self._thread.restarts and not self._thread.problem:
            return status
        failing = (self._thread.problem,) if self._thread.problem else ()
        return msgspec.structs.replace(status, restarts=self._thread.restarts, failing=failing)

    def _run(self, beat: Beat) -> None:
        """Also of a thread that replaces another: what that one read is kept until it is read."""
        self._seen = {}
        for known in self._files.values():
            known.identity = (0, 0, 0, 0)
        written: set[str] | None = None  # names known to be complete; None: all of them
        while not beat.stopping.is_set():
            beat.within(_READING_SECONDS)
            settled = self._look(written, beat)
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

    def _look(self, written: set[str] | None, beat: Beat) -> bool:
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
                self._read(file, identity, beat)
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
        if (changed or first) and not beat.stopping.is_set():  # else another thread does this now
            self._publish()
        return settled

    def _present(self) -> list[Path]:
        """The files there are now. A single file may go, if its directory stays."""
        gone = not self._path.exists()
        if gone and self._single and self._files and self._path.parent.is_dir():
            return []
        return manifest_files(self._path)

    def _read(self, file: Path, identity: Identity, beat: Beat) -> None:
        known = self._files.get(file) or _File(identity, {})
        try:
            data = read_bytes(file)
        except SourceError as error:
            self._keep(file, known, identity, error.message)
            return
        beat.within(_READING_SECONDS + len(data) / _BYTES_A_SECOND)
        found = parse(file, data)
        fault = _cut_short(file, data, known, identity)
        if fault and not found.errors:  # these say more, and nothing is removed then either
            self._keep(file, known, identity, fault)
            return
        read = _merged(found, known, identity)
        if not (found.errors or found.malformed):
            read.clean, read.newline = True, data.endswith(b"\n")
        self._files[file] = read
        self._log.info("manifest read", file=str(file), objects=len(found.objects))
        if read.problems:
            self._log.error(
                "manifest has errors, the rest of it is used",
                error=next(iter(read.problems)),
                errors=len(read.problems),
            )

    def _keep(self, file: Path, known: _File, identity: Identity, why: str) -> None:
        known.identity = identity
        known.problems = {why: not known.clean}
        self._files[file] = known
        self._log.error("manifest cannot be used, keeping its last contents", error=why)

    def _publish(self) -> None:
        """Hand over all objects of all files. Where two files have one object, the first counts."""
        merged: dict[documents.Identity, Object] = {}
        owner: dict[documents.Identity, Path] = {}
        problems: dict[str, bool] = {}
        for file in sorted(self._files):
            known = self._files[file]
            problems |= known.problems
            for identity, value in known.objects.items():
                first = owner.setdefault(identity, file)
                if first == file:
                    merged[identity] = value
                else:
                    what = f"{type(value).__name__} {identity[1]}"
                    problems[f"{file}: {what} is in {first} too, which counts"] = False
        self._store.replace_all(list(merged.values()), problems)


def _cut_short(file: Path, data: bytes, known: _File, identity: Identity) -> str:
    """Why the content seems to be the beginning of one that is still being written."""
    if known.clean and known.objects and not data.strip():
        return f"{file}: is empty now; remove the file to remove its objects"
    rewritten = known.clean and known.identity[:2] == identity[:2]
    cut = (known.newline and not data.endswith(b"\n")) or data.rstrip().endswith(b":")
    # Half of a YAML file may well be valid.
    return (
        f"{file}: seems half-written, it ends in the middle of something"
        if rewritten and cut
        else ""
    )


def _merged(found: Parsed, known: _File, identity: Identity) -> _File:
    """What a file holds now: what cannot be read stays as it was known."""
    objects: dict[documents.Identity, Object] = {}
    if found.errors:
        objects |= known.objects
    else:
        objects |= {
            about: known.objects[about] for about in found.malformed if about in known.objects
        }
    objects |= {(type(value), key_of(value)): value for value in found.objects}
    problems = dict.fromkeys(found.errors, not known.clean)
    problems |= {text: about not in objects for about, text in found.malformed.items()}
    problems |= dict.fromkeys(found.remarks, False)
    return _File(identity, objects, known.clean, known.newline, problems)


def _identity(file: Path) -> Identity:
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
