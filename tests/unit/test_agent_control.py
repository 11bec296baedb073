"""What the agent does on events, and in which order: programs come after the maps are complete."""

from __future__ import annotations

import ipaddress
import time
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from ebpf.kernel.netlink import Address, Network, Route
from lbctl.addresses import parse_address, parse_prefix
from lbctl.agent import memory
from lbctl.agent.attaching import Unattached
from lbctl.agent.control import Control
from lbctl.agent.facts import Facts
from lbctl.agent.loop import Guard
from lbctl.agent.parts import Parts
from lbctl.agent.report import STATUS_SECONDS, Report
from lbctl.agent.syncs import Syncs
from lbctl.config.settings import Settings
from lbctl.datapath import consts
from lbctl.health.monitor import Verdict
from lbctl.instruments import Instruments
from lbctl.model.records import Node, ObjectKey, Protocol, Service, ServiceObjects, ServicePort
from lbctl.model.updates import SourceStatus, Update
from lbctl.program import readback
from lbctl.reconcile.reconciler import Reconciler
from lbctl.status import BEAT_SECONDS, FastPathState, SourceState, StatusRecord
from tests.support.fake_tables import FakeTables

KEY = ObjectKey("default", "web")
WEB = ServiceObjects(
    Service(
        KEY,
        type="ClusterIP",
        cluster_ips=(parse_address("10.96.0.1"),),
        ports=(ServicePort("", Protocol.TCP, 80),),
    )
)

OTHER = ServiceObjects(
    Service(
        ObjectKey("default", "other"),
        type="ClusterIP",
        cluster_ips=(parse_address("10.96.0.2"),),
        ports=(ServicePort("", Protocol.TCP, 80),),
    )
)


def network(address: str) -> Network:
    return Network((), (Address(2, ipaddress.ip_address(address), 24, 0),), (Route(2, 4),))


def with_ranges(*service_cidrs: str) -> Settings:
    return Settings(service_cidrs=tuple(map(parse_prefix, service_cidrs)))


class Rig:
    """A control with a real reconciler on fake tables, and parts that note what they are told."""

    def __init__(self, settings: Settings) -> None:
        self.tables = FakeTables()
        self.events: list[str] = []
        self.updates: list[Update] = []
        self.verdicts: list[Verdict] = []
        self.unwritten = False
        self.busy = False
        self.problem = ""
        self.source = SourceStatus(connected=True)
        self.written: list[StatusRecord] = []
        self.interfaces = SimpleNamespace(
            network=network("192.0.2.1"),
            attached=0,
            xdp="off",
            drivers=(),
            xdp_problems=[],
            unattached=(),
            repaired=(),
            problem="",
            set_node_addresses=lambda found: None,
            set_patterns=lambda uplinks, pods: self.say(f"patterns {[*pods]}"),
        )
        facts = Facts("node1", settings.node, self.interfaces.network)
        self.reconciler = Reconciler(self.tables, facts.current)
        self.takeover = SimpleNamespace(present=False, poll=lambda now: True)
        stand_ins: Any = {
            "instance": self.tables,
            "programs": SimpleNamespace(
                attach=lambda: self.say("attach"),
                begin=lambda: self.say("begin"),
                placed=True,
                loaded=True,
                began=0.0,
            ),
            "growth": SimpleNamespace(fit=lambda: self.say("fit"), problem=""),
            "keeper": SimpleNamespace(problems=list, restarts=0),
            "guard": Guard(),
            "source": SimpleNamespace(
                wait=lambda timeout: self.updates.pop(0) if self.updates else None,
                status=lambda: self.source,
                api_places=frozenset,
            ),
            "config": None,
            "hub": SimpleNamespace(problem=""),
            "interfaces": self.interfaces,
            "sockets": SimpleNamespace(
                problems=[], mode="host", flags=0, host_netns=1, warnings=lambda localhost: []
            ),
            "takeover": self.takeover,
            "stale": SimpleNamespace(changed=lambda *_: None, problem="", closed=0),
            "fast_path": SimpleNamespace(state=FastPathState(), minding=()),
            "beat": SimpleNamespace(start=lambda now: self.say("beat")),
            "routine": SimpleNamespace(problem=""),
            "health": SimpleNamespace(
                queued=lambda: self.say("queued"),
                written=lambda: self.say("written"),
                ready=lambda: self.say("ready"),
                problems=list,
                take=lambda services, node: None,
                set_eligible=lambda eligible: None,
                set_places=lambda bind, addresses, metrics: None,
                judge=self.verdicts.append,
                unwritten=lambda: self.unwritten,
            ),
        }
        self.instruments = Instruments()
        self.parts = Parts(
            facts=facts,
            reconciler=self.reconciler,
            syncs=Syncs(self.instruments),
            **stand_ins,
        )
        record = StatusRecord(1, "0", "node1", "/x", source=SourceState("manifests"))
        self.report = Report(self.parts, record, cast(Any, self))
        self.control = Control(self.parts, settings, self.report)

    def say(self, what: str) -> None:
        """With what the maps hold at that moment."""
        self.events.append(
            f"{what}: config {'set' if self.configured else 'unset'}, "
            f"{len(self.tables.frontend_entries())} frontends"
        )

    def write(self, record: StatusRecord, hints: object, troubles: object) -> bool:
        self.written.append(record)
        return True

    def close(self) -> None:
        self.busy = False

    @property
    def configured(self) -> bool:
        return bool(self.tables.config.records["syn_timeout"][0])

    def update(self, *services: ServiceObjects, synced: bool = True) -> None:
        found = {s.service.key: s for s in services if s.service}
        node = Node("node1", internal_ips=(parse_address("192.0.2.1"),))
        self.updates.append(Update(found, node, True, synced, synced, SourceStatus(synced=synced)))
        self.control.take_update()


@pytest.fixture
def settings() -> Settings:
    return with_ranges("10.96.0.0/16")


@pytest.fixture
def rig(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(memory, "settle", lambda: None)
    return Rig(settings)


def test_nothing_is_written_or_attached_before_the_first_complete_list(rig: Rig) -> None:
    rig.update(WEB, synced=False)
    rig.control.follow_takeover(0.0)
    rig.interfaces.network = network("192.0.2.9")
    rig.control.follow_network(0.0)
    assert rig.events == []
    assert not rig.configured
    assert not rig.tables.frontends.records["word"].any()
    assert not rig.written


def test_the_first_sync_configures_writes_attaches_and_is_ready_in_this_order(rig: Rig) -> None:
    rig.update(WEB)
    assert rig.events == [
        "queued: config unset, 0 frontends",
        "fit: config unset, 0 frontends",
        "begin: config unset, 0 frontends",
        "written: config set, 2 frontends",
        "attach: config set, 2 frontends",
        "beat: config set, 2 frontends",
        "ready: config set, 2 frontends",
    ]
    assert [record.ready for record in rig.written] == [True]
    rig.update(WEB)
    assert not [event for event in rig.events[7:] if event.startswith(("attach", "ready"))]


def test_an_earlier_agents_programs_are_replaced_once(rig: Rig) -> None:
    rig.control.attach()
    rig.update(WEB)
    assert [event for event in rig.events if event.startswith("attach")] == [
        "attach: config unset, 0 frontends"
    ]
    # The maps are in use, and grow as they are.
    assert not [event for event in rig.events if event.startswith("fit")]


def test_the_record_follows_the_network_and_kube_proxy(rig: Rig) -> None:
    rig.update(WEB)
    assert rig.control.network_due() is None
    rig.interfaces.network = network("192.0.2.9")
    assert rig.control.network_due() == 0.0
    rig.events.clear()
    rig.control.follow_network(0.0)
    assert rig.control.network_due() is None
    assert rig.events  # applied: node ports may be elsewhere
    rig.takeover.present = True
    rig.control.follow_takeover(0.0)
    assert rig.tables.config.records["flags"][0] & consts.CONFIG_PASS_MIDSTREAM


def test_a_device_with_an_address_that_others_have_too_is_told_of(rig: Rig) -> None:
    """As the gateway's where each pod has a link of its own: the node's addresses stay the same."""
    rig.update(WEB)
    gateway = ipaddress.ip_address("10.244.1.1")
    links = [Address(index, gateway, 32, 0) for index in (3, 4)]
    before = rig.interfaces.network
    for count in (1, 2):
        addresses = (*before.addresses, *links[:count])
        rig.interfaces.network = Network((), addresses, before.default_routes)
        rig.control.follow_network(0.0)
        assert len(rig.tables.devices.entries) == count


def test_a_look_at_the_network_that_shows_nothing_new_applies_nothing(rig: Rig) -> None:
    rig.update(WEB)
    rig.events.clear()
    rig.interfaces.network = network("192.0.2.1")
    rig.control.follow_network(0.0)
    assert rig.control.network_due() is None
    assert rig.events == []


def test_settings_that_cannot_be_used_are_taken_back(rig: Rig, settings: Settings) -> None:
    bad = with_ranges(*(f"10.{i}.0.0/16" for i in range(consts.MAX_SERVICE_CIDRS + 1)))
    bad = msgspec.structs.replace(bad, pod_interfaces=("cali*",))
    refused: list[str] = []
    watch: Any = SimpleNamespace(poll=lambda now: bad, refused=refused.append)
    rig.update(WEB)
    before = rig.tables.config.records.copy()
    rig.control.take_settings(watch, 0.0)
    assert "--service-cidr" in refused[0]
    # Not even for a moment: a thread would go and attach.
    assert not [event for event in rig.events if "cali" in event]
    assert (rig.tables.config.records == before).all()
    assert rig.parts.facts.settings == settings.node


def test_the_file_is_written_at_most_once_a_second_and_when_the_disk_is_done(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rig.update(WEB)
    assert rig.report.due() == now + STATUS_SECONDS
    now += STATUS_SECONDS
    assert rig.report.due() == now - STATUS_SECONDS + BEAT_SECONDS  # it says already what is
    rig.interfaces.attached = 3
    assert rig.report.due() == now
    rig.busy = True
    assert rig.report.due() == now + STATUS_SECONDS
    rig.busy = False
    rig.report.step(now)
    assert [record.interfaces for record in rig.written] == [0, 3]
    now += BEAT_SECONDS
    rig.report.step(now)
    assert [record.interfaces for record in rig.written] == [0, 3, 3]  # the agent lives


def test_that_it_is_ready_waits_for_the_disk_and_no_longer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cast(Any, rig.parts.programs).placed = False
    rig.update(WEB)
    rig.report.step(now)
    rig.busy = True  # with that
    cast(Any, rig.parts.programs).placed = True
    rig.control.follow_programs(now)
    rig.busy = False
    now += 0.01
    due = rig.report.due()
    assert due is not None
    assert due <= now
    rig.report.step(now)
    assert [record.ready for record in rig.written] == [False, True]


def test_the_last_word_is_not_ready(rig: Rig) -> None:
    rig.update(WEB)
    rig.report.stopped()
    assert [record.ready for record in rig.written] == [True, False]


def test_interfaces_without_programs_make_the_agent_unready(rig: Rig) -> None:
    rig.update(WEB)
    rig.interfaces.unattached = (Unattached("eth7", 0.0, False, "it is busy"),)
    record = rig.report.record()
    assert not record.ready
    assert "no programs on pod interface eth7: it is busy" in record.warnings


def test_packets_may_come_only_when_the_programs_are_in_place(rig: Rig) -> None:
    """Which takes a while for many interfaces; what changes meanwhile is applied."""
    programs = cast(Any, rig.parts.programs)
    programs.placed = False
    rig.update(WEB)
    assert [event.partition(":")[0] for event in rig.events] == [
        "queued",
        "fit",
        "begin",
        "written",
        "attach",
    ]
    assert rig.control.placed_due() is None
    assert not rig.written
    rig.update(OTHER)
    assert rig.reconciler.services == 2
    programs.placed = True
    assert rig.control.placed_due() == 0.0
    rig.control.follow_programs(0.0)
    assert rig.control.placed_due() is None
    assert rig.events[-1].startswith("ready")
    assert [record.ready for record in rig.written] == [True]


def test_a_change_that_cannot_be_worked_out_is_tried_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.update(WEB)
    plan = rig.reconciler.planner.plan

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rig.reconciler.planner, "plan", fail)
    rig.events.clear()
    rig.update(OTHER)
    assert [event.partition(":")[0] for event in rig.events] == ["queued"]  # it is not written
    assert any("ZeroDivisionError" in text for text in rig.report.record().warnings)
    monkeypatch.setattr(rig.reconciler.planner, "plan", plan)
    assert rig.reconciler.retry_at() is not None
    rig.control.retry(0.0)
    assert rig.events[-1].startswith("written")
    assert rig.reconciler.services == 2
    assert not any("ZeroDivisionError" in text for text in rig.report.record().warnings)


def test_those_who_wait_for_room_have_it_when_maps_are_larger(rig: Rig) -> None:
    tables = rig.tables
    planner = rig.reconciler.planner
    planner.grow(planner.now._replace(services=1), readback.contents_of(tables), 2)
    rig.update(WEB, OTHER)
    assert rig.reconciler.waiting
    assert len(tables.names.entries) == 1
    rig.parts.programs.maps_changed()
    assert not rig.reconciler.waiting
    assert len(tables.names.entries) == 2
