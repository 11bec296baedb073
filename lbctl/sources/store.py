"""The current objects, indexed by service, and what changed since the consumer last looked.

Writers are the threads of a source; there is one consumer. Until every kind has been listed once,
no object is handed out: a service without its slices would look like a service without endpoints.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Collection, Hashable, Iterable, Mapping, Set

import msgspec

from lbctl.model.records import EndpointSlice, Node, ObjectKey, Service, ServiceObjects
from lbctl.model.updates import SourceStatus, Update

Object = Service | EndpointSlice | Node
KINDS: tuple[type[Object], ...] = (Service, EndpointSlice, Node)


MOST_PROBLEMS = 100  # that are told one by one


class _Problem(msgspec.Struct, frozen=True):
    message: str
    unread: bool


class Store:
    """The index behind every source. All methods may be called from any thread."""

    def __init__(self, node_name: str, parts: int, node_expected: bool = False) -> None:
        """`parts`: how many things have to be followed at once (kinds, or one path).
        `node_expected`: without an object the node's name is wrong; else it is if others have one.
        """
        self._node_name = node_name
        self._node_expected = node_expected
        self._other_nodes = False
        self._parts = parts
        self._lock = threading.Lock()
        self._services: dict[ObjectKey, Service] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._by_service: dict[ObjectKey, dict[ObjectKey, EndpointSlice]] = {}
        self._node: Node | None = None
        self._touched: dict[ObjectKey, None] = {}  # ordered: what changed first is applied first
        self._node_changed = False
        self._listed: set[type[Object]] = set()
        self._problems: dict[Hashable, _Problem] = {}
        self._told: tuple[tuple[str, ...], bool] | None = None  # of these; None: to be made anew
        self._errors: dict[Hashable, str] = {}
        self._connected: set[Hashable] = set()
        self._last_event: float | None = None
        self._reported: SourceStatus = SourceStatus()
        self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._signalled = False

    def close(self) -> None:
        """Release the file descriptor; nothing may be called afterwards."""
        os.close(self._eventfd)

    # What sources write.

    def put(self, value: Object, remark: str = "") -> bool:
        """An object as it now is. One that equals what is known changes nothing. `remark` says
        what part of it was wrong; whether that is new."""
        about = (type(value), key_of(value))
        with self._lock:
            before = self._problems.get(about)
            self._last_event = time.time()
            self._put(value)
            self._note(about, _Problem(remark, False) if remark else None)
            self._signal()
            return bool(remark) and (before is None or before.message != remark)

    def remove(self, kind: type[Object], key: ObjectKey) -> None:
        """An object is gone; a node's key has an empty namespace."""
        with self._lock:
            self._last_event = time.time()
            self._note((kind, key), None)
            self._remove(kind, key)
            self._signal()

    def replace(
        self,
        kind: type[Object],
        values: Iterable[Object],
        malformed: Mapping[ObjectKey, str] | None = None,
        remarks: Mapping[ObjectKey, str] | None = None,
    ) -> None:
        """All objects of a kind. Others are gone, but for `malformed` ones, which exist and cannot
        be read: those stay as they were known, with a problem that says why. If one of them has no
        name, it could be any, and none is gone. `remarks` say what part of an object was wrong.
        Counts as the kind's first list."""
        malformed = malformed or {}
        with self._lock:
            self._last_event = time.time()
            for about in [a for a in self._problems if isinstance(a, tuple) and a[0] is kind]:
                self._note(about, None)
            nameless = any(not key.name for key in malformed)
            self._replace(kind, values, self._keys(kind) if nameless else malformed)
            for key, message in (remarks or {}).items():
                self._note((kind, key), _Problem(message, False))
            for key, message in malformed.items():
                self._note((kind, key), _Problem(message, key not in self._keys(kind)))
            self._signal()

    def count(self, kind: type[Object]) -> int:
        """How many objects of a kind are known."""
        with self._lock:
            return len(self._keys(kind))

    def missing(self, kind: type[Object], keys: Set[ObjectKey]) -> frozenset[ObjectKey]:
        """Known objects of a kind that are not among `keys`."""
        with self._lock:
            return frozenset(key for key in self._keys(kind) if key not in keys)

    def replace_all(self, values: Collection[Object], problems: Mapping[str, bool]) -> None:
        """All objects of all kinds, and all problems, in one step, so that no service is seen
        without its slices. `problems`: sentences, with whether each means that something exists
        and was never read, so that what is programmed for it cannot be told from leftovers."""
        with self._lock:
            self._last_event = time.time()
            for kind in KINDS:
                self._replace(kind, (v for v in values if type(v) is kind))
            self._problems = {text: _Problem(text, unread) for text, unread in problems.items()}
            self._told = None
            self._signal()

    def set_problem(self, kind: type[Object], key: ObjectKey, message: str) -> bool:
        """An object cannot be read as it now is; what was known of it stays. Whether it is new."""
        with self._lock:
            before = self._problems.get((kind, key))
            self._note((kind, key), _Problem(message, key not in self._keys(kind)))
            self._signal()
            return before is None or before.message != message

    def wake(self) -> None:
        """Make the descriptor readable: the consumer is to look at its threads."""
        with self._lock:
            if not self._signalled:
                self._signalled = True
                os.eventfd_write(self._eventfd, 1)

    def connected(self, part: Hashable) -> None:
        """A part of the source (a kind, a path) is being followed."""
        with self._lock:
            self._connected.add(part)
            self._errors.pop(part, None)
            self._signal()

    def disconnected(self, part: Hashable, error: str) -> None:
        """... and now is not."""
        with self._lock:
            self._connected.discard(part)
            self._errors[part] = error
            self._signal()

    # What the consumer reads.

    def fileno(self) -> int:
        """Readable while there is something to take."""
        return self._eventfd

    def wait(self, timeout: float) -> Update | None:
        """`take`, after waiting for something to take."""
        poll = select.poll()
        poll.register(self._eventfd, select.POLLIN)
        poll.poll(max(timeout, 0) * 1000)
        return self.take()

    def take(self) -> Update | None:
        """Everything since the last call, None if nothing."""
        with self._lock:
            if self._signalled:
                os.eventfd_read(self._eventfd)
                self._signalled = False
            status = self._status()
            ready = status.synced and (self._touched or self._node_changed)
            if not ready and not _differs(status, self._reported):
                return None
            self._reported = status
            services: dict[ObjectKey, ServiceObjects] = {}
            node_changed = False
            if status.synced:
                services = {key: self._objects(key) for key in self._touched}
                node_changed = self._node_changed
                self._touched.clear()
                self._node_changed = False
            return Update(
                services, self._node, node_changed, status.synced, status.complete, status
            )

    def status(self) -> SourceStatus:
        """How the source is doing now."""
        with self._lock:
            return self._status()

    def problems_of(self, kind: type[Object]) -> dict[ObjectKey, str]:
        """By object of a kind, what of it cannot be read; those without a name are left out."""
        with self._lock:
            return {
                about[1]: problem.message
                for about, problem in self._problems.items()
                if isinstance(about, tuple) and about[0] is kind and about[1].name
            }

    # Below here, the lock is held.

    def _status(self) -> SourceStatus:
        synced = self._listed.issuperset(KINDS)
        if self._told is None:
            self._told = _sentences(self._problems.values())
        problems, unread = self._told
        return SourceStatus(
            connected=len(self._connected) == self._parts and not self._errors,
            synced=synced,
            complete=synced and not unread,
            last_error="; ".join(sorted(set(self._errors.values()))),
            last_event=self._last_event,
            problems=problems,
            node_expected=synced and (self._node_expected or self._other_nodes),
        )

    def _note(self, about: Hashable, problem: _Problem | None) -> None:
        if self._problems.get(about) == problem:
            return
        self._told = None
        if problem is None:
            del self._problems[about]
        else:
            self._problems[about] = problem

    def _objects(self, key: ObjectKey) -> ServiceObjects:
        slices = self._by_service.get(key)
        if not slices:
            return ServiceObjects(self._services.get(key))
        ordered = sorted(slices.values(), key=key_of) if len(slices) > 1 else slices.values()
        return ServiceObjects(self._services.get(key), tuple(ordered))

    def _keys(self, kind: type[Object]) -> Collection[ObjectKey]:
        if kind is Node:
            return [] if self._node is None else [key_of(self._node)]
        return self._services if kind is Service else self._slices

    def _replace(
        self, kind: type[Object], values: Iterable[Object], keep: Collection[ObjectKey] = ()
    ) -> None:
        stay = set(keep)
        if kind is Node:
            self._other_nodes = False
        for value in values:
            self._put(value)
            stay.add(key_of(value))
        for key in [k for k in self._keys(kind) if k not in stay]:
            self._remove(kind, key)
        self._listed.add(kind)

    def _put(self, value: Object) -> None:
        match value:
            case Service():
                if self._services.get(value.key) != value:
                    self._services[value.key] = value
                    self._touched[value.key] = None
            case EndpointSlice():
                self._put_slice(value)
            case Node() if value.name != self._node_name:
                self._other_nodes = True
            case Node():
                if value != self._node:
                    self._node = value
                    self._node_changed = True

    def _put_slice(self, value: EndpointSlice) -> None:
        known = self._slices.get(value.key)
        if known == value:
            return
        if known is not None and known.service != value.service:
            self._forget_slice(known)  # it moved: both services change
        self._slices[value.key] = value
        if value.service is not None:
            self._by_service.setdefault(value.service, {})[value.key] = value
            self._touched[value.service] = None

    def _forget_slice(self, value: EndpointSlice) -> None:
        if value.service is None:
            return
        slices = self._by_service[value.service]
        del slices[value.key]
        if not slices:
            del self._by_service[value.service]
        self._touched[value.service] = None

    def _remove(self, kind: type[Object], key: ObjectKey) -> None:
        if kind is Service:
            if self._services.pop(key, None) is not None:
                self._touched[key] = None
        elif kind is EndpointSlice:
            known = self._slices.pop(key, None)
            if known is not None:
                self._forget_slice(known)
        elif self._node is not None and self._node.name == key.name:
            self._node = None
            self._node_changed = True

    def _signal(self) -> None:
        if not self._signalled and (
            (self._listed.issuperset(KINDS) and (self._touched or self._node_changed))
            or _differs(self._status(), self._reported)
        ):
            self._signalled = True
            os.eventfd_write(self._eventfd, 1)


def key_of(value: Object) -> ObjectKey:
    """The key an object is stored under."""
    return ObjectKey("", value.name) if isinstance(value, Node) else value.key


def _sentences(problems: Collection[_Problem]) -> tuple[tuple[str, ...], bool]:
    """What there is to say, sorted and bounded, and whether something was never read."""
    found = sorted(p.message for p in problems)
    if len(found) > MOST_PROBLEMS:
        found = [*found[:MOST_PROBLEMS], f"... and {len(found) - MOST_PROBLEMS} more"]
    return tuple(found), any(p.unread for p in problems)


def _differs(status: SourceStatus, other: SourceStatus) -> bool:
    """Whether a consumer must hear of it: not for the time of the last event alone, nor for a node
    that is not its own."""
    same = {"last_event": other.last_event, "node_expected": other.node_expected}
    return msgspec.structs.replace(status, **same) != other
