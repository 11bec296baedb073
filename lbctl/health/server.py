"""All listening sockets of the health servers, and one thread that serves them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Self

import structlog

from lbctl.addresses import IPV6, family_of, format_address
from lbctl.config.bind import ANY4, ANY6, Bind
from lbctl.health.connection import Connection, Handler
from lbctl.threads import Beat, Watched

RETRY_SECONDS = 2.0
CONNECTION_SECONDS = 10.0
STUCK_SECONDS = 10.0  # no answer takes any time worth mentioning
MAX_CONNECTIONS = 256
FILES = 16384
_BACKLOG = 128


class Route(NamedTuple):
    """What answers at a place; `name` is for messages ("healthCheckNodePort of ns/svc")."""

    name: str
    handler: Handler


class Server:
    """Listens wherever it is told to, now and after changes, in the network namespace of the thread
    that calls `start`. A place that cannot be had is reported and tried again.

    `watched` is its thread, for who looks after threads. One that replaces another takes over its
    listening sockets, and nothing else.
    """

    def __init__(self, wake: Callable[[], None] | None = None) -> None:
        self._wanted: Mapping[Bind, Route] = MappingProxyType({})
        self._listening: dict[Bind, socket.socket] = {}
        self._failed: dict[Bind, str] = {}
        self._wakeup, self._waker = socket.socketpair()
        for end in (self._wakeup, self._waker):
            end.setblocking(False)
        self.watched = Watched("health server", self._serve, wake=wake)

    def start(self) -> None:
        _raise_file_limit()
        self.watched.start()

    def stop(self) -> None:
        """End the thread and close every socket."""
        self.watched.stop()
        self.watched.join(RETRY_SECONDS)
        for sock in (*self._listening.values(), self._wakeup, self._waker):
            sock.close()

    def serve(self, wanted: Mapping[Bind, Route]) -> None:
        """Listen at exactly these places from now on. Sockets that stay are not touched."""
        self._wanted = dict(wanted)  # replaced as a whole: the thread reads it without a lock
        self._wake()

    def problems(self) -> list[str]:
        """Sentences about places that cannot be had now."""
        return sorted(self._failed.copy().values())

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            return  # it has plenty of reasons to wake up already

    def _serve(self, beat: Beat) -> None:
        """The thread's work."""
        beat.interrupt = self._wake
        with _Turns(self._wakeup, self._listening, self._failed) as turns:
            while not beat.stopping.is_set():
                timeout = turns.timeout()
                beat.within(float("inf") if timeout is None else timeout + STUCK_SECONDS)
                ready = turns.wait(timeout)
                beat.within(STUCK_SECONDS)
                if not beat.stopping.is_set():
                    turns.turn(ready, self._wanted)


class _Turns:
    """What one thread of a server has: its connections, and the selector that wakes it."""

    def __init__(
        self,
        wakeup: socket.socket,
        listening: dict[Bind, socket.socket],
        failed: dict[Bind, str],
    ) -> None:
        self._wakeup = wakeup
        self._listening = listening
        self._failed = failed
        self._wanted: Mapping[Bind, Route] | None = None  # as far as could be
        self._connections: dict[int, Connection] = {}  # by file descriptor, oldest first
        self._retry = 0.0
        self._log = structlog.get_logger()
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup, selectors.EVENT_READ)
        for bind, sock in listening.items():
            self._selector.register(sock, selectors.EVENT_READ, bind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.close()
        self._selector.close()

    def timeout(self) -> float | None:
        """How long to wait at most."""
        times = [connection.deadline for connection in self._connections.values()][:1]
        if self._failed:
            times.append(self._retry)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def wait(self, timeout: float | None) -> list[selectors.SelectorKey]:
        """Until something can be done."""
        return [key for key, _ in self._selector.select(timeout)]

    def turn(self, ready: Iterable[selectors.SelectorKey], wanted: Mapping[Bind, Route]) -> None:
        """Do it, and listen where it is wanted."""
        for key in ready:
            if isinstance(key.data, Connection):
                self._proceed(key.data)
            elif isinstance(key.data, Bind):
                self._accept(key.data, wanted)
            else:
                with contextlib.suppress(BlockingIOError):  # a thread that was given up took it
                    self._wakeup.recv(4096)
        self._expire()
        self._listen(wanted)

    # Listening

    def _listen(self, wanted: Mapping[Bind, Route]) -> None:
        """Have the sockets that are wanted. Others go first: new ones may need their ports."""
        now = time.monotonic()
        failing = bool(self._failed)
        retry = failing and now >= self._retry
        if wanted is self._wanted and not retry:
            return
        self._wanted = wanted
        for bind in self._listening.keys() - wanted.keys():
            sock = self._listening.pop(bind)
            self._selector.unregister(sock)
            sock.close()
        for bind in self._failed.keys() - wanted.keys():
            del self._failed[bind]
        for bind, endpoint in wanted.items():
            if bind not in self._listening and (retry or bind not in self._failed):
                self._open(bind, endpoint.name)
        if retry or not failing:
            self._retry = now + RETRY_SECONDS

    def _open(self, bind: Bind, name: str) -> None:
        try:
            sock = listening_socket(bind)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and bind.address == ANY6 and not bind.both:
                return  # "all IPv6 addresses" of a node without IPv6
            problem = explain(bind, name, error)
            if self._failed.get(bind) != problem:
                self._log.warning("cannot listen", on=str(bind), serving=name, why=problem)
            self._failed[bind] = problem
            return
        self._failed.pop(bind, None)
        self._listening[bind] = sock
        self._selector.register(sock, selectors.EVENT_READ, bind)
        self._log.info("listening", on=str(bind), serving=name)

    # Connections

    def _accept(self, bind: Bind, wanted: Mapping[Bind, Route]) -> None:
        endpoint = wanted.get(bind)
        if endpoint is None:
            return
        try:
            sock, _ = self._listening[bind].accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._log.warning("cannot accept", on=str(bind), error=os.strerror(error.errno or 0))
            time.sleep(0.1)  # out of file descriptors: it stays readable meanwhile
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop(next(iter(self._connections.values())))
        deadline = time.monotonic() + CONNECTION_SECONDS
        connection = Connection(sock, endpoint.handler, deadline)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, connection.events, connection)

    def _proceed(self, connection: Connection) -> None:
        before = connection.events
        if not connection.proceed():
            self._drop(connection)
        elif connection.events != before:
            self._selector.modify(connection.sock, connection.events, connection)

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections.values()):
            if connection.deadline > now:
                break
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if self._connections.pop(connection.sock.fileno(), None) is not None:
            self._selector.unregister(connection.sock)
            connection.close()


def _raise_file_limit() -> None:
    """Every service has a socket or two, and the usual soft limit is 1024 files (which is for
    programs that call select; this one does not)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listening_socket(bind: Bind) -> socket.socket:
    """A non-blocking listening socket in this thread's network namespace. Raises OSError."""
    try:
        sock = socket.socket(
            socket.AF_INET6 if family_of(bind.address) == IPV6 else socket.AF_INET,
            socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
    except OSError as error:
        if bind.both and error.errno == errno.EAFNOSUPPORT:
            return listening_socket(Bind(ANY4, bind.port))
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not bind.both))
        sock.bind((format_address(bind.address), bind.port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def explain(bind: Bind, name: str, error: OSError) -> str:
    """Why a place cannot be had, and what to do."""
    reason = {
        errno.EADDRINUSE: "another process listens there (`ss -ltnp` names it; a running "
        "kube-proxy does until it is stopped)",
        errno.EADDRNOTAVAIL: "this node does not have the address now",
        errno.EMFILE: "this process has as many files open as it may (`ulimit -n`)",
        errno.EACCES: "this process may not use the port",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"cannot listen on {bind} for {name}: {reason}; trying again"
