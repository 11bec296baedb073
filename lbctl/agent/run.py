"""The agent: opens what it consists of, and lets each part act when it has something to do.

One thread decides all of it. The source's own threads only fill its store, and others carry out
what may take long: attaching, the status file, closing sockets, probes, passing on events.
Killing the agent at any point leaves the data path in place, and the next one continues from what
is in the maps.
"""

import gc
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from ebpf.compile import compiler
from ebpf.hooks.tc import Attacher
from ebpf.hooks.xdp import DriverAttacher
from ebpf.instance import Instance
from ebpf.layouts import Bundle
from ebpf.maps.sizes import Sizes
from ebpf.parts import used
from lbctl.agent import carrying, fastpath, measures, memory
from lbctl.agent.auditing import Auditing
from lbctl.agent.beat import Beat
from lbctl.agent.carrying import Carrying
from lbctl.agent.control import Control
from lbctl.agent.drivers import Drivers
from lbctl.agent.events import Complaints, EventApi, Teller, of_node
from lbctl.agent.facts import Facts
from lbctl.agent.fastpath import FastPath
from lbctl.agent.flowgrowth import MOVING_SECONDS, FlowGrowth
from lbctl.agent.generation import LaterGeneration
from lbctl.agent.growth import Growth
from lbctl.agent.interfaces import Interfaces
from lbctl.agent.keeper import Keeper
from lbctl.agent.learned import COUNTING_SECONDS, Learned
from lbctl.agent.loop import Guard, Loop, Readable, Reader, Signals, Timed, Timer
from lbctl.agent.parts import Parts
from lbctl.agent.report import WRITING_SECONDS, Report, StatusWriter
from lbctl.agent.routine import Routine
from lbctl.agent.sockets import OFF, SocketHooks
from lbctl.agent.stalesockets import CLOSING_SECONDS, StaleSockets
from lbctl.agent.standing import StandingFile
from lbctl.agent.syncs import Syncs
from lbctl.config.settings import Settings
from lbctl.config.watch import FollowedFile
from lbctl.health.monitor import Health
from lbctl.host import requirements, takeover
from lbctl.instruments import Instruments
from lbctl.model.updates import Source
from lbctl.observe.hub import Hub, events_of
from lbctl.program import readback
from lbctl.reconcile.reconciler import Reconciler
from lbctl.status import SourceState, StatusRecord

_LEAVES = 2.0


class Options(msgspec.Struct, frozen=True):
    """What the command line says, and what it settles with the file."""

    node_name: str
    pin_dir: Path
    source_kind: str  # manifests or kubernetes
    settings: Settings
    sizes: Sizes | None = None
    cgroup: Path | None = None  # of this node's processes; None: the root of all


class _DataPath(NamedTuple):
    """What the agent opens first."""

    bundle: Bundle
    most: Sizes
    instance: Instance
    interfaces: Interfaces
    sockets: SocketHooks
    programs: LaterGeneration


class Agent:
    """One instance's control plane. `run` once."""

    def __init__(
        self,
        options: Options,
        source: Source,
        config: FollowedFile | None = None,
        instruments: Instruments | None = None,
        events: EventApi | None = None,
    ) -> None:
        """`config` follows the file that `options` are from, if there is one; `source` counts what
        it does in the same `instruments`; `events` takes Events, if they are wanted."""
        self._options = options
        self._instruments = instruments or Instruments()
        self._source = source
        self._config = config
        self._events = events
        self._cache_problem = ""

    def run(self) -> None:
        """Until SIGTERM or SIGINT. Raises LbError if it cannot start."""
        log = structlog.get_logger()
        with ExitStack() as undo:
            parts = self._open(undo)
            errand = parts.keeper.errand("status file", WRITING_SECONDS)
            writer = StatusWriter(self._options.pin_dir, errand)
            undo.callback(writer.close)
            report = Report(parts, self._record(), writer)
            report.cache_problem = self._cache_problem
            control = Control(parts, self._options.settings, report)
            pages = measures.pages(parts, report, self._instruments, lambda: control.settings)
            parts.health.add_pages(pages.paths)
            if parts.interfaces.were_attached():
                # Of an earlier agent, whose maps are complete. A fresh instance waits for the first
                # list: without it every service would be refused.
                control.attach()
                parts.health.ready()
            signals = undo.enter_context(Signals())
            facts_errand = parts.keeper.errand("facts file", WRITING_SECONDS)
            beside: list[Timed] = [
                Auditing(parts, control),
                StandingFile(
                    self._options.pin_dir, parts.facts, lambda: control.settings, facts_errand
                ),
            ]
            members = [signals, *_members(parts, control, report, beside)]
            members += self._tell(parts, report, undo)
            loop = undo.enter_context(Loop(members, parts.guard))
            undo.callback(parts.keeper.stop)
            log.info("agent started", node=self._options.node_name, pid=os.getpid())
            while not signals.stopping:
                loop.turn()
                parts.health.turned()
                if parts.programs.failure:  # without programs there is nothing to go on for
                    raise parts.programs.failure
            report.stopped()
            log.info("agent stops; the data path stays")

    def _open(self, undo: ExitStack) -> Parts:
        keeper = Keeper()
        undo.callback(keeper.close)
        health = Health(wake=keeper.wake, instruments=self._instruments)
        keeper.keep(health.thread)
        undo.callback(health.stop)
        memory.prepare()
        undo.callback(gc.enable)
        opened = self._open_data_path(keeper, health, undo)
        return self._complete(opened, keeper, health, undo)

    def _open_data_path(self, keeper: Keeper, health: Health, undo: ExitStack) -> _DataPath:
        """What is in the kernel, and who puts programs into their places."""
        options, settings = self._options, self._options.settings
        whole = compiler.bundle()
        if flaw := compiler.cache_flaw():
            log = structlog.get_logger()
            log.warning("compiled programs are not cached", why=flaw)
            self._cache_problem = f"compiled programs are not cached: {flaw}"
        most = msgspec.structs.replace(
            options.sizes or Sizes.automatic_here(),
            sockets=settings.socket_lb != OFF,
            fast_path=settings.fast_path == fastpath.ON or settings.xdp != fastpath.OFF,
        )
        bundle = used(whole, most)
        first = most.at_first(carrying.count(options.pin_dir))
        instance = Instance.create_or_open(options.pin_dir, bundle, first)
        undo.callback(instance.close)
        health.set_places(settings.healthz, (), settings.metrics)
        health.start()  # not before the instance is ours, and so the ports
        attacher = Attacher(options.pin_dir)
        drivers = Drivers(
            settings.xdp,
            settings.xdp_devices,
            DriverAttacher(options.pin_dir),
            instance.xdp_devices,
            fastpath.Gate(instance.config).begin_epoch,
        )
        interfaces = Interfaces(
            attacher, settings.uplinks, settings.pod_interfaces, drivers, keeper
        )
        sockets = SocketHooks(options.pin_dir, settings.socket_lb, options.cgroup)
        carried = Carrying(bundle, instance)
        programs = LaterGeneration(bundle, instance, interfaces, sockets, keeper, carried)
        undo.callback(programs.close)
        if interfaces.were_attached():
            # The kernel checks programs for a second: meanwhile the objects are listed and planned.
            # A fresh instance has to be made as large as they ask for before that.
            programs.begin()
        interfaces.start()
        undo.callback(interfaces.close)
        return _DataPath(bundle, most, instance, interfaces, sockets, programs)

    def _complete(
        self, opened: _DataPath, keeper: Keeper, health: Health, undo: ExitStack
    ) -> Parts:
        """What fills the data path, and looks after it."""
        options, settings = self._options, self._options.settings
        bundle, most, instance = opened.bundle, opened.most, opened.instance
        interfaces, sockets, programs = opened.interfaces, opened.sockets, opened.programs
        self._source.expect(readback.count_services(instance))
        self._source.start()
        undo.callback(self._source.stop)
        asking = keeper.errand("kube-proxy's rules", takeover.ASKING_SECONDS)
        watcher = takeover.Watcher(settings.takeover, asking)
        facts = Facts(options.node_name, settings.node, interfaces.network)
        entries = most.max_entries(bundle)
        room, cells = readback.room_for(entries), entries["cells4a"]
        reconciler = Reconciler(instance, facts.current, instance, room, cells)
        moving = keeper.errand("moving flows", MOVING_SECONDS)
        flows = FlowGrowth(instance, programs, moving, most.flows)
        counting = keeper.errand("counting", COUNTING_SECONDS)
        learned = Learned(instance, counting, most.flows)
        growth = Growth(bundle, instance, programs, reconciler, flows, learned, most)
        closing = keeper.errand("stale sockets", CLOSING_SECONDS)
        stale = StaleSockets(instance, reconciler, settings.socket_lb, closing)
        undo.callback(stale.stop)
        beat = Beat(instance.config)
        undo.callback(beat.stop)
        fast_path = FastPath(
            settings.fast_path, instance, interfaces, programs, keeper, drivers=settings.xdp
        )
        undo.callback(fast_path.close)
        fast_path.start()
        routine = Routine(interfaces, sockets)
        routine.reserve_ports()
        hub = Hub(options.pin_dir, events_of(instance), instance)
        telling = keeper.work("flow events", hub.work)
        telling.start()
        undo.callback(telling.join, _LEAVES)
        undo.callback(telling.stop)
        return Parts(
            instance=instance,
            programs=programs,
            growth=growth,
            source=self._source,
            config=self._config,
            interfaces=interfaces,
            sockets=sockets,
            takeover=watcher,
            facts=facts,
            reconciler=reconciler,
            stale=stale,
            beat=beat,
            fast_path=fast_path,
            routine=routine,
            health=health,
            keeper=keeper,
            guard=Guard(),
            syncs=Syncs(self._instruments),
            hub=hub,
        )

    def _tell(self, parts: Parts, report: Report, undo: ExitStack) -> list[Timed]:
        """Who writes Events, if anybody does."""
        if self._events is None:
            return []
        pin_dir, node = self._options.pin_dir, of_node(self._options.node_name)
        doctor = partial(requirements.check, pin_dir)
        teller = Teller(self._events, self._instruments, doctor, node, parts.keeper.wake)
        report.events_problem = lambda: teller.problem or teller.watched.problem
        teller.start()
        undo.callback(teller.stop)
        return [Complaints(parts, report, teller)]

    def _record(self) -> StatusRecord:
        return StatusRecord(
            pid=os.getpid(),
            version=version("lbctl"),
            node=self._options.node_name,
            pin_dir=str(self._options.pin_dir),
            source=SourceState(self._options.source_kind),
        )


def _members(
    parts: Parts, control: Control, report: Report, beside: Sequence[Timed]
) -> list[Readable | Timed]:
    """Everything that acts, in the order in which it does if due together: what is looked at comes
    before what follows from it, and the report of it all last."""
    reconciler, watch = parts.reconciler, parts.config
    return [
        Reader(parts.source.fileno, control.take_update),
        Timer(parts.source.due, lambda now: parts.source.status()),
        parts.keeper,
        parts.interfaces,
        parts.programs,
        Timer(control.placed_due, control.follow_programs),
        parts.routine,
        Timer(control.network_due, control.follow_network),
        *([Timer(watch.due, partial(control.take_settings, watch))] if watch else ()),
        Timer(parts.takeover.due, control.follow_takeover),
        parts.stale,
        parts.beat,
        Timer(reconciler.retry_at, control.retry),
        Timer(reconciler.warming_due, reconciler.warm),
        Timer(reconciler.departures.due, reconciler.departures.step),
        Timer(reconciler.housekeeper.due, control.sweep),
        parts.growth,
        *beside,
        report,
    ]
