"""What follows from what: objects, facts and settings that changed, carried into the data path."""

import time

import structlog

from ebpf.errors import LbError
from ebpf.kernel import features
from lbctl.agent import memory
from lbctl.agent.parts import Parts
from lbctl.agent.report import Report
from lbctl.config.settings import Settings
from lbctl.config.watch import FollowedFile
from lbctl.errors import ConfigError
from lbctl.health.ports import listening_addresses
from lbctl.program import config
from lbctl.program.config import DataPathSettings
from lbctl.resolve.node import is_leaving


class Control:
    """Reacts to events, each in its own method, all in one thread."""

    def __init__(self, parts: Parts, settings: Settings, report: Report) -> None:
        self._parts = parts
        self._settings = settings
        self._report = report
        self._complete = False  # what no update named by now does not exist
        self._attached = False
        self._announced = False
        self._beating = False
        self._log = structlog.get_logger()
        parts.programs.maps_changed = self._follow_maps

    @property
    def settings(self) -> Settings:
        """Those that hold now."""
        return self._settings

    def attach(self) -> None:
        """Have the programs put in place: there are services to be found in the maps."""
        self._attached = True
        self._parts.programs.attach()

    def placed_due(self) -> float | None:
        """At once, if programs are in place and `follow_programs` has something to do for that."""
        synced = self._parts.reconciler.synced
        waits = not self._announced if synced else not self._beating
        return 0.0 if waits and self._parts.programs.placed else None

    def follow_programs(self, now: float) -> None:
        """Programs are in place: packets and probes may come as soon as the maps are complete."""
        if not self._beating:
            self._beating = True
            self._parts.beat.start(now)
        if self._parts.reconciler.synced:
            self._announced = True
            self._parts.health.ready()
            self._report.ready()

    def take_update(self) -> None:
        """The source has news."""
        update = self._parts.source.wait(0)
        if update is None:
            return
        facts, health = self._parts.facts, self._parts.health
        self._parts.syncs.noted(update, self._parts.reconciler)
        self._parts.reconciler.take(update)  # first: whatever fails below, it is not lost
        moved = self._note_own_places()
        if update.node_changed or update.node != facts.node:
            node = facts.node = update.node
            self._parts.interfaces.set_node_addresses(node.internal_ips if node else ())
            self._use_facts()
            health.set_eligible(not is_leaving(node))
        elif moved:
            self._use_facts()
        self._complete = update.complete
        if update.synced:
            self._apply()
            health.take(update.services, facts.current)

    def network_due(self) -> float | None:
        """At once, if the network was looked at since `follow_network`."""
        return None if self._parts.interfaces.network is self._parts.facts.network else 0.0

    def follow_network(self, now: float) -> None:
        """Addresses or routes may have changed."""
        self._parts.facts.network = self._parts.interfaces.network
        if self._use_facts():
            self._apply()
        elif self._parts.reconciler.synced:
            self._store_addresses()  # a device may have one that others have too

    def take_settings(self, watch: FollowedFile, now: float) -> None:
        """What changed in the file, as far as a running agent can take it over. Programs reach new
        interfaces before they leave others; records change field by field."""
        found = watch.poll(now)
        if found is None:
            return
        before, self._settings = self._settings, found
        try:
            self._use_settings()
        except ConfigError as error:
            self._settings = before
            self._use_settings()
            watch.refused(error.message)

    def follow_takeover(self, now: float) -> None:
        """Whether kube-proxy's rules are still there is known anew."""
        takeover = self._parts.takeover
        if takeover.poll(now):
            self._log.info("kube-proxy's rules", present=takeover.present)
            if self._parts.reconciler.synced:
                self._store_config()

    def retry(self, now: float) -> None:
        """What a map had no room for, or refused."""
        self._apply()

    def put_right(self, now: float) -> None:
        """Plan what an audit found to be broken."""
        self._apply()

    def restore_config(self) -> list[str]:
        """Make the `config` record and the devices say again what they should; returns what did
        not."""
        return self._store_config() if self._parts.reconciler.synced else []

    def sweep(self, now: float) -> None:
        """One step; what had to wait for a free id may fit after the last one."""
        reconciler = self._parts.reconciler
        if reconciler.housekeeper.step(now) and reconciler.freed():
            self._apply()

    def _follow_maps(self) -> None:
        """Maps are larger: who waited for room may have it now."""
        self._parts.reconciler.grown()
        if self._parts.reconciler.freed():
            self._apply()

    def _apply(self) -> None:
        reconciler, health = self._parts.reconciler, self._parts.health
        first, full = not reconciler.synced, reconciler.complete_pass
        began = time.monotonic()
        health.queued()
        if first:
            self._begin()
        try:
            wrote = reconciler.apply(self._complete)
        except Exception as error:  # noqa: BLE001 - one object must not end the agent
            # What it was about to write is known no more: all of it is planned again.
            self._log.exception("a change could not be computed")
            reconciler.start_over(_unexpected(error))
            wrote = True
        spent = time.monotonic() - began
        if not reconciler.refused:
            health.written()
            self._parts.syncs.written(spent, full=full)
        self._parts.stale.changed(*reconciler.take_touched(), began)
        if wrote or first:
            self._report.applied(spent)
            self._log.debug("applied", milliseconds=round(spent * 1000, 2))
        if first:
            self._first_sync(spent)

    def _begin(self) -> None:
        """The first list is there."""
        if not self._attached:
            self._parts.growth.fit()
        self._parts.programs.begin()
        self._store_config()

    def _first_sync(self, spent: float) -> None:
        """The maps are complete."""
        if not self._attached:
            self.attach()
        self._set_health_places()
        reconciler = self._parts.reconciler
        self._log.info(
            "first sync done",
            services=reconciler.services,
            endpoints=reconciler.planner.backend_ids.in_use,
            seconds=round(spent, 3),
        )
        if self.placed_due() is not None:
            self.follow_programs(time.monotonic())
        memory.settle()

    def _use_facts(self) -> bool:
        """Make everything follow from the facts. Returns whether services have to be applied."""
        facts = self._parts.facts
        if not facts.settle():
            return False
        current = facts.current
        self._log.info(
            "facts about the node changed", zone=current.zone, addresses=len(current.addresses)
        )
        self._parts.reconciler.set_node(current)
        if not self._parts.reconciler.synced:
            return False
        self._store_config()
        self._set_health_places()
        return True

    def _use_settings(self) -> None:
        """What can be refused comes first: interfaces are another thread's, which would get
        programs for a moment."""
        settings = self._settings
        self._parts.facts.settings = settings.node
        self._note_own_places()
        if self._use_facts():
            self._apply()
        if self._parts.reconciler.synced:
            self._store_config()
            self._set_health_places()
        self._parts.interfaces.set_patterns(settings.uplinks, settings.pod_interfaces)

    def _note_own_places(self) -> bool:
        """Where the API server and this agent listen, which no object may take; returns whether
        that is elsewhere than before."""
        facts, settings = self._parts.facts, self._settings
        facts.api_places = self._parts.source.api_places()
        facts.own_ports = tuple(bind.port for bind in (settings.healthz, settings.metrics) if bind)
        known = facts.current
        return (facts.api_places, facts.own_ports) != (known.api_places, known.own_ports)

    def _set_health_places(self) -> None:
        addresses = listening_addresses(self._settings.node, self._parts.facts.current)
        self._parts.health.set_places(self._settings.healthz, addresses, self._settings.metrics)

    def _store_config(self) -> list[str]:
        """Returns what was another. Not before the first list: without the Node object it might say
        something else for a moment, in a data path that is running."""
        parts, facts = self._parts, self._parts.facts.current
        settings = DataPathSettings(
            parts.takeover.present,
            socket_flags=parts.sockets.flags,
            host_netns=parts.sockets.host_netns,
            masquerade_by_device=features.ROUTE_SOURCE in features.masked(),
            timeouts=self._settings.timeouts,
            dsr_port=self._settings.dsr_port,
            dsr_ipip=self._settings.dsr_encapsulation == "ipip",
        )
        devices = self._store_addresses()
        changed = config.store(parts.instance.config, facts, settings)
        if changed:
            self._log.info("data path configured", fields=changed)
        return [*changed, *(["devices"] if devices else [])]

    def _store_addresses(self) -> int:
        """Returns how many devices were others."""
        parts = self._parts
        return config.store_devices(parts.instance.devices, parts.facts.devices)


def _unexpected(error: Exception) -> LbError:
    return LbError(
        f"a change could not be computed: {type(error).__name__}: {error}"[:300],
        "The log says where, please report it.",
    )
