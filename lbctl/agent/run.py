"""The agent: waits for events, applies what changed, sweeps, and says how it is doing.

One thread does all of it; the source's own threads only fill its store. Killing the agent at any
point leaves the data path in place, and the next one continues from what is in the maps.
"""

import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import msgspec
import structlog

from ebpf import programs
from ebpf.compile import compiler
from ebpf.hooks.tc import Attacher
from ebpf.instance import Instance
from ebpf.maps.sizes import Sizes
from lbctl.addresses import FAMILIES, family_of
from lbctl.agent import memory
from lbctl.agent.generation import LaterGeneration
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.report import StatusWriter
from lbctl.agent.sockets import SocketHooks
from lbctl.agent.stalesockets import StaleSockets
from lbctl.config.settings import Settings
from lbctl.config.watch import FollowedFile
from lbctl.errors import ConfigError
from lbctl.health.monitor import Health
from lbctl.health.ports import listening_addresses
from lbctl.host import reserve, takeover
from lbctl.model.records import Node
from lbctl.model.updates import Source
from lbctl.program import config as nodeconfig
from lbctl.program.config import DataPathSettings
from lbctl.reconcile.reconciler import Reconciler
from lbctl.resolve.node import NodeFacts, is_leaving, node_facts
from lbctl.status import SourceState, StatusRecord

# Addresses and sysctls are looked at again this often even if nobody reports a change.
ROUTINE_SECONDS = 60.0
# The status file is written at most this often while much changes.
STATUS_SECONDS = 1.0


class Options(msgspec.Struct, frozen=True):
    """What the command line says, and what it settles with the file."""

    node_name: str
    pin_dir: Path
    source_kind: str  # manifests or kubernetes
    settings: Settings
    sizes: Sizes | None = None
    cgroup: Path | None = None  # of this node's processes; None: the root of all


class Agent:
    """One instance's control plane. `run` once."""

    def __init__(
        self, options: Options, source: Source, config: FollowedFile | None = None
    ) -> None:
        """`config` follows the file that `options` are from, if there is one."""
        self._options = options
        self._settings = options.settings
        self._config = config
        self._source = source
        self._log = structlog.get_logger()
        self._stopping = False
        self._node: Node | None = None
        self._ready = False
        self._complete = False  # what no update named by now does not exist
        self._programs_wanted = False
        self._record = StatusRecord(
            pid=os.getpid(),
            version=version("lbctl"),
            node=options.node_name,
            pin_dir=str(options.pin_dir),
            source=SourceState(options.source_kind),
        )
        self._written: StatusRecord | None = None
        self._written_at = 0.0
        self._next_routine = 0.0
        self._reserve_problem = ""
        self._health = Health()
        self._writer = StatusWriter(options.pin_dir)

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises LbError if it cannot start."""
        with ExitStack() as undo:
            undo.callback(self._writer.close)
            undo.callback(self._health.stop)
            self._open(undo)
            self._log.info("agent started", node=self._options.node_name, pid=os.getpid())
            self._loop(undo)
            self._record = msgspec.structs.replace(self._record, ready=False)
            self._write_status(force=True)
            self._log.info("agent stops; the data path stays")

    def _open(self, undo: ExitStack) -> None:
        options = self._options
        memory.prepare()
        undo.callback(gc.enable)
        bundle = compiler.bundle()
        self._bundle = bundle
        self._instance = Instance.create_or_open(options.pin_dir, bundle, options.sizes)
        undo.callback(self._instance.close)
        self._health.set_places(self._settings.healthz, ())
        self._health.start()  # not before the instance is ours, and so the ports
        # The kernel checks programs for a second: meanwhile the objects are listed and planned.
        self._generation = LaterGeneration(bundle, self._instance)
        undo.callback(self._generation.close)
        self._source.start()
        undo.callback(self._source.stop)
        attacher = Attacher(options.pin_dir)
        settings = options.settings
        self._interfaces = Interfaces(attacher, settings.uplinks, settings.pod_interfaces)
        undo.callback(self._interfaces.close)
        self._sockets = SocketHooks(options.pin_dir, settings.socket_lb, options.cgroup)
        self._takeover = takeover.Watcher(settings.takeover)
        undo.callback(self._takeover.stop)
        self._facts = self._current_facts()
        self._reconciler = Reconciler(self._instance, self._facts)
        self._stale = StaleSockets(self._instance, self._reconciler, settings.socket_lb)
        undo.callback(self._stale.stop)
        self._reserve_ports()
        if attacher.attachments():
            # Of an earlier agent, whose maps are complete. A fresh instance waits for the first
            # list: without it every service would be refused.
            self._attach()
            self._health.ready()

    def _attach(self) -> None:
        self._programs_wanted = True
        began = time.monotonic()
        generation = self._generation.result()
        self._interfaces.attach_all(generation)
        self._sockets.attach(generation)
        self._instance.finish()
        programs.drop_other_generations(self._bundle, self._instance)
        self._log.info(
            "programs in place",
            interfaces=self._interfaces.attached,
            milliseconds=round((time.monotonic() - began) * 1000, 1),
        )

    def _loop(self, undo: ExitStack) -> None:
        selector = undo.enter_context(selectors.DefaultSelector())
        wakeup = self._handle_signals(undo)
        selector.register(wakeup, selectors.EVENT_READ, lambda: wakeup.recv(64))
        selector.register(self._interfaces, selectors.EVENT_READ, self._interfaces.handle_events)
        selector.register(self._source.fileno(), selectors.EVENT_READ, self._take_update)
        while not self._stopping:
            for key, _ in selector.select(self._timeout()):
                handle: Callable[[], object] = key.data
                handle()
            self._timers()
            self._write_status()
            self._health.turned()

    def _handle_signals(self, undo: ExitStack) -> socket.socket:
        """A signal ends the wait through a pair of sockets, whenever it arrives."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
            undo.callback(end.close)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        undo.callback(signal.set_wakeup_fd, before)
        for number in (signal.SIGTERM, signal.SIGINT):
            undo.callback(signal.signal, number, signal.signal(number, self._stop))
        return reader

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _timeout(self) -> float:
        if self._reconciler.housekeeper.running():
            return 0.0
        times = [
            self._next_routine,
            self._reconciler.housekeeper.due(),
            self._reconciler.retry_at(),
            self._interfaces.next_refresh(),
            self._stale.due(),
        ]
        if self._config:
            times.append(self._config.due())
        if self._current_record() != self._written:
            wait = STATUS_SECONDS if self._writer.busy else 0.0
            times.append(max(self._written_at + STATUS_SECONDS, time.monotonic() + wait))
        return max(0.0, min(t for t in times if t is not None) - time.monotonic())

    def _timers(self) -> None:
        self._generation.check()
        now = time.monotonic()
        refresh = self._interfaces.next_refresh()
        if refresh is not None and now >= refresh and self._interfaces.refresh():
            self._facts_may_differ()
        if now >= self._next_routine:
            self._next_routine = now + ROUTINE_SECONDS
            self._interfaces.refresh(thorough=True)
            self._sockets.refresh()
            self._facts_may_differ()
            self._reserve_ports()
        if self._config:
            self._take_settings(self._config, now)
        if self._takeover.poll(now):
            self._log.info("kube-proxy's rules", present=self._takeover.present)
            if self._reconciler.synced:
                self._store_config()
        self._stale.step(now)
        retry = self._reconciler.retry_at()
        if retry is not None and now >= retry:
            self._apply()
        housekeeper = self._reconciler.housekeeper
        due = housekeeper.running() or now >= housekeeper.due()
        if due and housekeeper.step(now) and self._reconciler.retry_at() is not None:
            self._apply()  # what had to wait for a free id may fit now

    def _take_update(self) -> None:
        update = self._source.wait(0)
        if update is None:
            return
        if update.node_changed or update.node != self._node:
            self._node = update.node
            self._interfaces.set_node_addresses(self._node.internal_ips if self._node else ())
            self._facts_may_differ(apply=False)
            self._health.set_eligible(not is_leaving(self._node))
        self._reconciler.take(update)
        self._complete = update.complete
        if update.synced:
            self._apply()
            self._health.take(update.services, self._facts)

    def _apply(self) -> None:
        first = not self._reconciler.synced
        began = time.monotonic()
        self._health.queued()
        if first:
            self._store_config()
        wrote = self._reconciler.apply(self._complete)
        if not self._reconciler.refused:
            self._health.written()
        self._stale.changed(*self._reconciler.take_touched(), began)
        spent = time.monotonic() - began
        if wrote or first:
            self._record = msgspec.structs.replace(
                self._record,
                last_apply=datetime.now(UTC).isoformat(timespec="milliseconds"),
                last_apply_seconds=round(spent, 6),
            )
            self._log.debug("applied", milliseconds=round(spent * 1000, 2))
        if not first:
            return
        if not self._programs_wanted:
            self._attach()
        self._ready = True
        self._health.ready()
        self._set_health_places()
        self._log.info(
            "first sync done",
            services=self._reconciler.services,
            endpoints=self._reconciler.planner.backend_ids.in_use,
            seconds=round(spent, 3),
        )
        memory.settle()
        self._write_status(force=True)

    def _facts_may_differ(self, apply: bool = True) -> None:
        facts = self._current_facts()
        if facts == self._facts:
            return
        self._facts = facts
        self._log.info(
            "facts about the node changed", zone=facts.zone, addresses=len(facts.addresses)
        )
        self._reconciler.set_node(facts)
        if self._reconciler.synced:
            self._store_config()
            self._set_health_places()
            if apply:
                self._apply()

    def _take_settings(self, config: FollowedFile, now: float) -> None:
        """What changed in the file, as far as a running agent can take it over. Programs reach new
        interfaces before they leave others; records change field by field."""
        found = config.poll(now)
        if found is None:
            return
        before, self._settings = self._settings, found
        try:
            self._use_settings()
        except ConfigError as error:
            self._settings = before
            self._use_settings()
            config.refused(error.message)

    def _use_settings(self) -> None:
        self._interfaces.set_patterns(self._settings.uplinks, self._settings.pod_interfaces)
        self._facts_may_differ()
        if self._reconciler.synced:
            self._store_config()
            self._set_health_places()

    def _current_facts(self) -> NodeFacts:
        """Of the Node object and the interfaces; these alone where the object names no address."""
        settings = self._settings.node
        declared = self._node.internal_ips + self._node.external_ips if self._node else ()
        named = {family_of(address) for address in (*settings.primary_addresses, *declared)}
        found = [self._interfaces.primary(f) for f in FAMILIES if f not in named]
        primary = (*settings.primary_addresses, *(a for a in found if a is not None))
        settings = msgspec.structs.replace(settings, primary_addresses=primary)
        addresses = self._interfaces.addresses()
        return node_facts(self._options.node_name, self._node, addresses, settings)

    def _set_health_places(self) -> None:
        addresses = listening_addresses(self._settings.node, self._facts)
        self._health.set_places(self._settings.healthz, addresses)

    def _store_config(self) -> None:
        """Not before the first list: without the Node object it might say something else for a
        moment, in a data path that is running."""
        settings = DataPathSettings(
            self._takeover.present,
            self._instance.flows4.max_entries,
            socket_flags=self._sockets.flags,
            host_netns=self._sockets.host_netns,
            timeouts=self._settings.timeouts,
        )
        primary = tuple(a for a in (self._facts.primary4, self._facts.primary6) if a)
        # The bits of masqueraded flows' addresses come before the addresses.
        self._reconciler.housekeeper.set_node_addresses(primary)
        changed = nodeconfig.store(self._instance.config, self._facts, settings)
        if changed:
            self._log.info("data path configured", fields=changed)

    def _reserve_ports(self) -> None:
        first, last = nodeconfig.PORTS
        problem = ""
        try:
            if reserve.reserve(first, last):
                self._log.info("reserved source ports", first=first, last=last)
        except OSError as error:
            problem = (
                f"cannot reserve ports {first}-{last} in {reserve.RESERVED}: {error.strerror}; "
                "a process on this node may use one that a translated connection has"
            )
            if problem != self._reserve_problem:
                self._log.warning(problem)
        self._reserve_problem = problem

    def _current_record(self) -> StatusRecord:
        reconciler, source = self._reconciler, self._source.status()
        problems = [*self._interfaces.problems, *self._sockets.problems]
        warnings = [
            *problems,
            *reconciler.warnings(),
            *reconciler.housekeeper.warnings(),
            *filter(None, [self._reserve_problem, self._stale.problem]),
            *self._health.problems(),
            *(self._config.problems() if self._config else ()),
        ]
        return msgspec.structs.replace(
            self._record,
            ready=self._ready and not self._stopping and not problems,
            synced=source.synced,
            services=reconciler.services,
            service_ports=len(reconciler.planner.services),
            endpoints=reconciler.planner.backend_ids.in_use,
            interfaces=self._interfaces.attached,
            taking_over=self._takeover.present,
            socket_lb=self._sockets.mode,
            sockets_closed=self._stale.closed,
            source=SourceState(
                self._options.source_kind,
                source.connected,
                source.complete,
                source.last_error,
                source.problems,
            ),
            tables=reconciler.housekeeper.tables(),
            warnings=tuple(warnings),
        )

    def _write_status(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and (now < self._written_at + STATUS_SECONDS or self._writer.busy):
            return
        record = self._current_record()
        hints = self._reconciler.take_hints()
        if record == self._written and hints is None:
            return
        self._written_at = now
        self._written = record
        self._writer.write(record, hints)
