"""Reads the ring of events while somebody listens, and gives everybody a copy: a thread of the
agent.

While nobody listens, programs write nothing, and this waits. That somebody does is said for some
seconds at a time: an agent that is killed leaves programs that soon pay nothing any more.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections import deque
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import structlog

from ebpf import trust
from ebpf.errors import Untrusted
from ebpf.flowevents import EVENT, read_events
from ebpf.instance import Instance
from ebpf.maps.base import Records, of_kind
from ebpf.maps.ring import Ring
from lbctl.datapath import clock
from lbctl.datapath.tables import ArrayTable
from lbctl.observe import wire
from lbctl.observe.wire import Told, Wanted
from lbctl.threads import Beat

LISTENING_SECONDS: Final = 5.0  # that somebody does is believed for so long
LOOK_SECONDS: Final = 0.02  # the ring has room for a tenth of a second of very much
_RENEW_SECONDS: Final = 1.0
_STUCK_SECONDS: Final = 30.0
_AGAIN_SECONDS: Final = 10.0  # until it is tried again to have the socket
_MOST_BEHIND: Final = 32 << 20  # bytes that wait for one listener
_MOST_LISTENERS: Final = 16
_KEPT: Final = 16384  # events of the past
_MODE: Final = 0o750


class Maps(Protocol):
    """What is read and written of an instance."""

    @property
    def config(self) -> ArrayTable: ...
    @property
    def cpus(self) -> ArrayTable: ...


def events_of(instance: Instance) -> Ring:
    """An instance's ring of them."""
    return of_kind(Ring, instance.map("flow_events"))


class Hub:
    """The thread's work, and what is counted of it."""

    def __init__(self, pin_dir: Path, ring: Ring, maps: Maps) -> None:
        self._path = wire.path_of(pin_dir)
        self._ring = ring
        self._config = maps.config
        self._cpus = maps.cpus
        self._log = structlog.get_logger()
        self.problem = ""
        self.dropped = 0  # events that one listener or another was too slow for
        self.listeners = 0

    @property
    def unheard(self) -> int:
        """Events that the ring had no room for."""
        return int(self._cpus.records["unheard"].sum())

    def work(self, beat: Beat) -> None:
        """Until the thread has to stop."""
        while not beat.stopping.is_set():
            listening = self._listen()
            if listening is None:
                beat.pause(_AGAIN_SECONDS)
                continue
            with listening, _Turns(self, listening, beat) as turns:
                turns.run()

    def _listen(self) -> socket.socket | None:
        """The socket, or none for now."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        fresh = self._path.with_suffix(f".events-{os.getpid()}")
        try:
            trust.make_directory(self._path.parent, _MODE)
            fresh.unlink(missing_ok=True)
            made.bind(str(fresh))
            fresh.chmod(0o600)
            made.listen(_MOST_LISTENERS)
            fresh.replace(self._path)  # what an agent left that was killed
        except (OSError, Untrusted) as error:
            made.close()
            problem = f"nobody can listen to events of flows: {error}"
            if problem != self.problem:
                self._log.warning("nobody can listen to events", error=str(error))
            self.problem = problem
            return None
        self.problem = ""
        return made

    def read(self) -> Records:
        """What programs have told."""
        return read_events(self._ring)

    def say_until(self, seconds: float) -> None:
        """That somebody listens, for so long; 0: nobody does."""
        until = (clock.current_beat() + clock.beats(seconds) + 1) & 0xFFFFFFFF
        self._config.records["events_until"] = (until or 1) if seconds else 0


class _Listener:
    """One of them, and what it has still to get."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = b""  # of its line
        self.unheard: int | None = None  # of the ring, when it began; None: it has not yet
        self.dropped = 0
        self.ends = False
        self._waiting: deque[memoryview] = deque()
        self._behind = 0

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        return bool(self._waiting)

    def lost(self, unheard: int) -> int:
        """How many events it did not get, when the ring had no room for so many."""
        return unheard - (self.unheard or 0) + self.dropped

    def tell(self, told: Told, records: Records, unheard: int) -> int:
        """Have it told; returns how many it is too slow for."""
        missed = 0
        if self._behind + records.nbytes > _MOST_BEHIND:
            missed, records = len(records), records[:0]
            self.dropped += missed
        self.put(wire.frame(told, records, self.lost(unheard)))
        return missed

    def put(self, content: bytes) -> None:
        """Have this sent."""
        self._waiting.append(memoryview(content))
        self._behind += len(content)

    def send(self) -> bool:
        """As much as it takes now; returns whether it is still there."""
        try:
            while self._waiting:
                sent = self.sock.send(self._waiting[0])
                self._behind -= sent
                if sent < len(self._waiting[0]):
                    self._waiting[0] = self._waiting[0][sent:]
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return not self.ends


class _Turns:
    """What one thread has: who listens, and what was told of late."""

    def __init__(self, hub: Hub, listening: socket.socket, beat: Beat) -> None:
        self._hub = hub
        self._beat = beat
        self._listeners: list[_Listener] = []
        self._kept: deque[Records] = deque()
        self._held = 0  # events in them
        self._since = 0  # events are told without a gap since then
        self._renewed = 0.0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ, None)
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._listening = listening

    def __enter__(self) -> _Turns:
        self._beat.interrupt = self._ring_bell
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.interrupt = _nothing
        self._hub.say_until(0)
        self._hub.listeners = 0
        for listener in self._listeners:
            listener.sock.close()
        self._selector.close()
        os.close(self._bell)

    def _ring_bell(self) -> None:
        with contextlib.suppress(OSError):  # it has just been closed
            os.eventfd_write(self._bell, 1)

    def run(self) -> None:
        """Until the thread has to stop."""
        while not self._beat.stopping.is_set():
            timeout = LOOK_SECONDS if self._listeners else None
            self._beat.within(float("inf") if timeout is None else _STUCK_SECONDS)
            ready = self._selector.select(timeout)
            self._beat.within(_STUCK_SECONDS)
            self._turn({key.fileobj: key.data for key, _ in ready})

    def _turn(self, ready: dict[object, _Listener | None]) -> None:
        if self._listening in ready:
            self._accept()
        if self._listeners:
            self._pass_on()
        for listener in filter(None, ready.values()):
            self._hear(listener)
        for listener in [*self._listeners]:
            if not listener.send():
                self._leave(listener)
            else:
                events = selectors.EVENT_READ * (not listener.ends)
                events |= selectors.EVENT_WRITE * listener.waits
                self._selector.modify(listener.sock, events or selectors.EVENT_READ, listener)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError:
            return
        if len(self._listeners) >= _MOST_LISTENERS:
            sock.close()
            return
        sock.setblocking(False)
        listener = _Listener(sock)
        self._selector.register(sock, selectors.EVENT_READ, listener)
        if not self._listeners:
            # What an agent left that was killed is no part of what is told from now on.
            self._hub.read()
            self._since = time.monotonic_ns()
            self._renew(time.monotonic())
        self._listeners.append(listener)
        self._hub.listeners = len(self._listeners)

    def _leave(self, listener: _Listener) -> None:
        self._listeners.remove(listener)
        self._selector.unregister(listener.sock)
        listener.sock.close()
        self._hub.listeners = len(self._listeners)
        if not self._listeners:
            self._hub.say_until(0)
            self._kept.clear()
            self._held = 0

    def _renew(self, now: float) -> None:
        self._renewed = now
        self._hub.say_until(LISTENING_SECONDS)

    def _pass_on(self) -> None:
        """What programs have told since the last time; now and then, that they have not."""
        now = time.monotonic()
        renews = now >= self._renewed + _RENEW_SECONDS
        if renews:
            self._renew(now)
        records = self._hub.read()
        if not len(records) and not renews:
            return
        unheard = self._hub.unheard
        for listener in self._listeners:
            if listener.unheard is not None:
                self._hub.dropped += listener.tell(Told.NOW, records, unheard)
        self._keep(records)

    def _keep(self, records: Records) -> None:
        if len(records):
            self._kept.append(records)
            self._held += len(records)
        while self._kept and self._held - len(self._kept[0]) >= _KEPT:
            self._held -= len(self._kept.popleft())

    def _hear(self, listener: _Listener) -> None:
        """It wants something, or wants no more."""
        try:
            piece = listener.sock.recv(wire.MOST_LINE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if listener.unheard is not None:
            if not piece:
                self._finish(listener)
            return
        listener.heard += piece
        line, end, _ = listener.heard.partition(b"\n")
        if end:
            self._begin(listener, line)
        elif not piece or len(listener.heard) > wire.MOST_LINE:
            listener.ends = True

    def _begin(self, listener: _Listener, line: bytes) -> None:
        """Everything was passed on right before: what comes from now on is what it has to get."""
        try:
            wanted = msgspec.json.decode(line, type=Wanted)
        except msgspec.DecodeError:
            listener.ends = True
            return
        listener.unheard = self._hub.unheard
        listener.put(wire.hello(self._since))
        past = np.concatenate([np.empty(0, EVENT), *self._kept])
        past = past[past["time"] >= wanted.since] if wanted.since else past
        chosen = past[-wanted.last :] if wanted.last else past if wanted.since else past[:0]
        listener.tell(Told.PAST, chosen, listener.unheard)

    def _finish(self, listener: _Listener) -> None:
        self._hub.dropped += listener.tell(Told.LAST, self._last(listener), self._hub.unheard)
        listener.ends = True

    def _last(self, listener: _Listener) -> Records:
        """What came in since all were told; the others get it too."""
        records = self._hub.read()
        unheard = self._hub.unheard
        for other in self._listeners:
            if other is not listener and other.unheard is not None:
                self._hub.dropped += other.tell(Told.NOW, records, unheard)
        self._keep(records)
        return records


def _nothing() -> None:
    """There is nothing to be interrupted."""
